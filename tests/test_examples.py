"""The files in examples/: their steps, commands, paths and limits work, and fit the server."""

import contextlib
import functools
import http.client
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest
import serving
import yaml
from PIL import Image

from minigdino import cli
from minigdino.serving import web
from training.world import draw_scene

pytestmark = pytest.mark.once

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
DOCKERFILE = EXAMPLES / "docker" / "Dockerfile"
IGNORED = (EXAMPLES / "docker" / "Dockerfile.dockerignore").read_text().split()
COMPOSE = yaml.safe_load((EXAMPLES / "docker" / "compose.yaml").read_text())
PROMETHEUS = yaml.safe_load((EXAMPLES / "docker" / "prometheus.yml").read_text())
UNIT = (EXAMPLES / "minigdino.service").read_text()
NGINX = (EXAMPLES / "nginx.conf").read_text()
DEPLOYMENT, SERVICE = yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text())
POD = DEPLOYMENT["spec"]["template"]["spec"]
SLURM = (EXAMPLES / "slurm.sh").read_text()
JOB = yaml.safe_load((EXAMPLES / "kubernetes-job.yaml").read_text())
JOB_POD = JOB["spec"]["template"]["spec"]
UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "Mi": 2**20, "Gi": 2**30}


def steps():
    """[(instruction, its arguments)] of the Dockerfile."""
    lines = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)).splitlines()
    return [(first, rest) for first, _, rest in (line.partition(" ") for line in lines if line)]


def step(name):
    """The arguments of an instruction that occurs once."""
    (found,) = (rest for instruction, rest in steps() if instruction == name)
    return found


def options(words):
    """The options of `minigdino serve`, as the parser reads them."""
    assert words[:2] == ["minigdino", "serve"]
    return cli.parser().parse_args(words[1:])


def number(text):
    """A size such as 5g or 3Gi, in bytes; seconds such as 70s."""
    value, unit = re.fullmatch(r"(\d+)(\w*)", str(text)).groups()
    return int(value) * (1 if unit in ("", "s") else UNITS[unit])


@functools.cache
def paths():
    """The paths of the server."""
    return set(serving.local_app()[0].openapi()["paths"])


ENTRYPOINT = json.loads(step("ENTRYPOINT"))
HEALTH = json.loads(step("HEALTHCHECK").partition(" CMD ")[2])
IN_COMPOSE = options(ENTRYPOINT + COMPOSE["services"]["minigdino"]["command"])
IN_UNIT = options(["minigdino", *shlex.split(re.search(r"^ExecStart=(.*)$", UNIT, re.MULTILINE)[1])[1:]])
IN_POD = options(ENTRYPOINT + POD["containers"][0]["args"])


# ---- Docker


def copied():
    """[(source, target)] of the files that the Dockerfile copies from the repository."""
    for instruction, rest in steps():
        if instruction == "COPY" and not rest.startswith("--from"):
            *sources, target = rest.split()
            yield from ((source, target) for source in sources)


def is_ignored(path):
    """Whether a file of the repository is left out, as Docker reads the list of ignored files."""
    ignored = False
    for pattern in IGNORED:
        keeps, pattern = pattern.startswith("!"), pattern.removeprefix("!")
        parents = [path, *path.parents]
        if any(fnmatchcase(str(one), pattern) or (
                "**" in pattern and fnmatchcase(one.name, pattern.removeprefix("**/"))) for one in parents):
            ignored = not keeps
    return ignored


def test_the_image_has_what_an_installation_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    sources = {source for source, _ in copied()}
    assert {"pyproject.toml", "setup.py", project["readme"], *project["license-files"], "_ext", "minigdino"} <= sources
    for source in sources:
        assert (ROOT / source).exists()
        assert not is_ignored(Path(source))
    assert not is_ignored(Path("minigdino/serving/page/docs.css")) and not is_ignored(Path("_ext/product.h"))
    for left_out in ("tests", ".git", "minigdino/__pycache__", "_ext/ops.c", "_ext/avx2/ops.cpython-312.so"):
        assert is_ignored(Path(left_out)), left_out
    assert ENTRYPOINT[0] in project["scripts"]
    minimum = re.search(r"[\d.]+", project["requires-python"])[0]
    for instruction, rest in steps():
        if instruction == "FROM":
            version = re.match(r"python:([\d.]+)-slim\b", rest)[1]
            assert [int(part) for part in version.split(".")] >= [int(part) for part in minimum.split(".")]
            assert f"Programming Language :: Python :: {version}" in project["classifiers"]


def test_the_image_runs_without_root_and_checks_its_health():
    assert int(step("USER")) == POD["securityContext"]["runAsUser"] > 0
    assert step("EXPOSE") == str(options(ENTRYPOINT).port)
    (url,) = re.findall(r"http://127\.0\.0\.1:(\d+)(/[\w/]+)", HEALTH[2])
    assert url[0] == step("EXPOSE") and url[1] in paths()
    assert [HEALTH[:2], compile(HEALTH[2], "", "exec") and HEALTH[3:]] == [["python", "-c"], []]


def test_commands_name_existing_files_and_options():
    texts = [path.read_text() for path in EXAMPLES.rglob("*") if path.is_file()]
    named = {path for text in texts for path in re.findall(r"--file(?:name)? (\S+)", text)}
    assert named == {str(path.relative_to(ROOT)) for path in (
        DOCKERFILE, DOCKERFILE.parent / "compose.yaml", EXAMPLES / "kubernetes.yaml",
        EXAMPLES / "kubernetes-job.yaml")}
    (run,) = re.findall(r"^docker run (.*)$", "\n".join(texts), re.MULTILINE)
    before, _, arguments = run.partition(" minigdino ")
    assert options(ENTRYPOINT + arguments.split()).model
    assert f"--volume models:{step('VOLUME')}" in before and f":{step('EXPOSE')} " in before


AS_ROOT = os.geteuid() == 0 and shutil.which("apt-get")  # as in the image


def run_steps(folder):
    """Run the steps of the Dockerfile in a folder that takes the place of the root. Returns the environment."""
    where, work = {"/opt/": f"{folder}/opt/", "/source": f"{folder}/source", "/models": f"{folder}/models",
                   # the system of this machine stays as it is
                   "apt-get update": "true", "apt-get install": "apt-get install --simulate",
                   "useradd": f"useradd --prefix {folder}/system"}, folder
    kept = {name: value for name, value in os.environ.items()
            if name == "HOME" or name.startswith(("PIP_", "SSL_"))}
    environment = {**kept, "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/bin"}
    (folder / "system" / "etc").mkdir(parents=True)

    def here(text):
        return functools.reduce(lambda text, pair: text.replace(*pair), where.items(), text)

    for instruction, rest in steps():
        if instruction == "WORKDIR":
            work = Path(here(rest))
            work.mkdir()
        elif instruction == "COPY" and not rest.startswith("--from"):
            *sources, target = rest.split()
            for source in sources:
                copy(ROOT / source, work / target / (source if target == "./" else ""))
        elif instruction == "ENV":
            for name, _, value in (pair.partition("=") for pair in rest.split()):
                environment[name] = here(value).replace("$PATH", environment["PATH"])
        elif instruction == "RUN" and (AS_ROOT or not re.match("apt-get|useradd", rest)):
            done = subprocess.run(["sh", "-c", here(rest)], cwd=work, env=environment, capture_output=True, text=True)
            if "Could not find a version" in done.stderr or "ConnectionError" in done.stderr:
                pytest.skip("pip cannot install packages here")
            assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return environment


def copy(source, target):
    if source.is_dir():
        shutil.copytree(source, target, ignore=lambda folder, names: [
            name for name in names if is_ignored((Path(folder) / name).relative_to(ROOT))])
    else:
        shutil.copy(source, target)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.mark.slow
def test_the_steps_of_the_image_run(tmp_path):
    """In a new virtual environment: the installation with its kernels, the server, its health, and its end."""
    environment, port = run_steps(tmp_path), str(free_port())
    info = subprocess.run(["minigdino", "info"], env=environment, cwd=tmp_path, check=True, capture_output=True,
                          text=True).stdout
    assert re.search(r"^missing +none$", info, re.MULTILINE), info
    twins = re.findall(r"^twins .*", info, re.MULTILINE)
    assert twins and all(" yes" in line and " NO" not in line for line in twins), info
    if AS_ROOT:
        assert f":{step('USER')}:" in (tmp_path / "system" / "etc" / "passwd").read_text()
        assert (tmp_path / "models").stat().st_uid == int(step("USER"))

    def ready():
        return not subprocess.run([word.replace(":8000", f":{port}") for word in HEALTH], env=environment, cwd=tmp_path,
                                  check=False, capture_output=True).returncode

    command = [{"0.0.0.0": "127.0.0.1", "8000": port}.get(word, word) for word in ENTRYPOINT]
    with subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert any(line.startswith("serving shapes at") for line in server.stderr)  # nothing is cached
            assert ready()
            connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=60)
            with contextlib.closing(connection):
                connection.request("POST", "/v1/detect", *serving.form([("image", serving.SCENE), ("text", "a star.")]))
                answer = connection.getresponse()
                assert answer.status == 200
                assert json.loads(answer.read())["results"][0]["detections"]
                connection.request("GET", "/docs")
                assert connection.getresponse().status == 200  # the page is installed
            server.send_signal(signal.SIGTERM)
            assert server.wait(30) == 0
            assert not ready()
        finally:
            server.kill()


def test_compose_starts_the_image_and_gives_it_time_to_end():
    service, files = COMPOSE["services"]["minigdino"], EXAMPLES / "docker"
    build = service["build"]
    assert (files / build["context"]).resolve() == ROOT
    assert (files / build["context"] / build["dockerfile"]).resolve() == DOCKERFILE
    assert number(service["stop_grace_period"]) > IN_COMPOSE.timeout + web.FLUSH
    assert number(service["mem_limit"]) > IN_COMPOSE.workers * IN_COMPOSE.max_memory * 10**6
    assert service["cpus"] == IN_COMPOSE.workers * IN_COMPOSE.threads
    assert service["ports"] == [f"127.0.0.1:{IN_COMPOSE.port}:{IN_COMPOSE.port}"]
    assert service["volumes"] == [f"models:{step('VOLUME')}"] and "models" in COMPOSE["volumes"]
    assert set(service["environment"]) <= {"MINIGDINO_API_KEY", "MINIGDINO_MODEL"}


def test_prometheus_reads_the_figures_with_the_key():
    prometheus = COMPOSE["services"]["prometheus"]
    source, target, _ = prometheus["volumes"][0].split(":")
    assert (EXAMPLES / "docker" / source).is_file() and target == "/etc/prometheus/prometheus.yml"
    (job,) = PROMETHEUS["scrape_configs"]
    assert job["metrics_path"] in paths()
    assert job["static_configs"] == [{"targets": [f"minigdino:{IN_COMPOSE.port}"]}]
    (secret,) = prometheus["secrets"]
    assert COMPOSE["secrets"][secret]["environment"] == "MINIGDINO_API_KEY"
    assert job["authorization"]["credentials_file"] == f"/run/secrets/{secret}"
    app, _ = serving.local_app(key="abc")
    assert serving.call(app, "GET", job["metrics_path"])[0] == 401
    assert serving.call(app, "GET", job["metrics_path"], headers={"Authorization": "Bearer abc"})[0] == 200


# ---- systemd


def test_the_unit_gives_the_server_time_to_end_and_signals_it_alone():
    settings = dict(re.findall(r"^(\w+)=(.*)$", UNIT, re.MULTILINE))
    assert number(settings["TimeoutStopSec"]) > IN_UNIT.timeout + web.FLUSH
    assert settings["KillMode"] == "mixed"
    assert settings["DynamicUser"] == "yes"
    assert f"/var/cache/{settings['CacheDirectory']}" == settings["Environment"].removeprefix("HF_HOME=")


def test_systemd_accepts_the_unit(tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("needs systemd-analyze")
    unit = tmp_path / "minigdino.service"
    unit.write_text(UNIT.replace("/opt/minigdino/bin/minigdino", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert [line for line in done.stderr.splitlines() if str(unit) in line or unit.name in line] == []
    assert done.returncode == 0, done.stderr


# ---- nginx


def test_nginx_fits_the_limits_of_the_server():
    settings = dict(re.findall(r"^\s*(\w+) ([^;{]+);", NGINX, re.MULTILINE))
    assert int(settings["client_max_body_size"][:-1]) * 2**20 >= IN_UNIT.max_bytes
    assert number(settings["proxy_read_timeout"]) >= IN_UNIT.timeout + web.FLUSH
    assert number(settings["keepalive_timeout"]) < web.KEEP_ALIVE
    assert f"server {IN_UNIT.host}:{IN_UNIT.port};" in NGINX
    assert re.search(r"location = (\S+) {\s+deny all;", NGINX)[1] in paths()


@pytest.fixture
def proxy(tmp_path):
    """nginx with the example, in front of a server. A function that sends a request through it."""
    if not (shutil.which("nginx") and shutil.which("openssl")):
        pytest.skip("needs nginx and openssl")
    for name in ("certs", "private"):
        (tmp_path / name).mkdir()
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=detect.example.org",
                    "-keyout", tmp_path / "private/detect.example.org.key",
                    "-out", tmp_path / "certs/detect.example.org.pem"], check=True, capture_output=True)
    server, port = serving.Server("--model", "shapes", "--workers", "1"), free_port()
    folders = "".join(f"{name}_temp_path {tmp_path}/{name};\n" for name in
                      ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    config = tmp_path / "nginx.conf"
    config.write_text(NGINX.replace("listen 443", f"listen 127.0.0.1:{port}").replace("/etc/ssl", str(tmp_path))
                      .replace(f"127.0.0.1:{IN_UNIT.port};", f"127.0.0.1:{server.port};")
                      .replace("http {\n", f"http {{\naccess_log off;\n{folders}"))
    user = "user root; " if os.geteuid() == 0 else ""  # else its workers cannot enter the folder of this test
    command = ["nginx", "-p", tmp_path, "-c", config, "-e", "stderr"]
    settings = ["-g", f"{user}daemon off; pid {tmp_path}/nginx.pid;"]

    def ask(method, path, *more):
        context = ssl.create_default_context(cafile=tmp_path / "certs/detect.example.org.pem")
        context.check_hostname = False
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=60, context=context)
        with contextlib.closing(connection):
            connection.request(method, path, *more)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

    try:
        tested = subprocess.run([*command, "-t", *settings], capture_output=True, text=True, check=False)
        assert tested.returncode == 0, tested.stderr
        with subprocess.Popen([*command, *settings], stderr=subprocess.DEVNULL) as process:
            for _ in range(200):
                with contextlib.suppress(ConnectionRefusedError):
                    ask("GET", "/health/live")
                    break
                time.sleep(0.05)
            yield ask
            process.terminate()
    finally:
        server.kill()


def test_requests_through_nginx(proxy):
    form = serving.form([("image", serving.SCENE), ("text", "a star.")])
    status, headers, content = proxy("POST", "/v1/detect", *form)
    assert status == 200
    assert json.loads(content)["results"][0]["detections"]
    assert headers["Content-Security-Policy"].startswith("default-src 'self'")
    assert proxy("POST", "/v1/detect", b"{}", {"Content-Type": "application/json"})[0] == 422
    assert proxy("GET", "/metrics")[0] == 403
    with contextlib.suppress(OSError):  # the proxy may close before it has read everything
        assert proxy("POST", "/v1/detect", bytes(22 * 2**20), {"Content-Type": "application/json"})[0] == 413
    assert {proxy("GET", "/health/ready")[0] for _ in range(60)} == {200, 429}


# ---- Kubernetes


def test_the_probes_have_paths_of_the_server():
    (container,) = POD["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": IN_POD.port}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] in paths()
        assert container[probe]["httpGet"]["port"] in ports
    assert container["livenessProbe"]["httpGet"]["path"] == "/health/live"
    assert SERVICE["spec"]["ports"][0]["targetPort"] in ports
    assert SERVICE["spec"]["selector"] == DEPLOYMENT["spec"]["selector"]["matchLabels"]
    assert DEPLOYMENT["spec"]["template"]["metadata"]["labels"] == SERVICE["spec"]["selector"]


def test_a_pod_has_the_time_and_the_memory_that_the_server_needs():
    (container,), (download,) = POD["containers"], POD["initContainers"]
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert POD["terminationGracePeriodSeconds"] > pause + IN_POD.timeout + web.FLUSH
    limits = container["resources"]["limits"]
    assert number(limits["memory"]) > IN_POD.workers * IN_POD.max_memory * 10**6
    assert int(limits["cpu"]) == IN_POD.workers * IN_POD.threads
    assert cli.parser().parse_args(download["command"][1:]).id == IN_POD.model
    volumes = {volume["name"] for volume in POD["volumes"]}
    for one in (container, download):
        assert {mount["name"] for mount in one["volumeMounts"]} == volumes
        assert one["securityContext"]["readOnlyRootFilesystem"]
        assert one["image"] == COMPOSE["services"]["minigdino"]["image"]
    assert step("VOLUME") in {mount["mountPath"] for mount in container["volumeMounts"]}
    secret = container["envFrom"][0]["secretRef"]["name"]
    assert f"kubectl create secret generic {secret} --from-literal=MINIGDINO_API_KEY=" in (
        EXAMPLES / "kubernetes.yaml").read_text()


# ---- runs in shards

PROMPT = "a star. a circle. a blue square."  # the embedded checkpoint knows no cats


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with drawn pictures, a manifest, and the lines of one run over all of them."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(8):
        Image.fromarray(draw_scene(np.random.default_rng(number)).image).save(folder / f"{number}.png")
    rows = [f"{7 * number},{number}.png" for number in range(8)]
    (folder / "images.csv").write_text("\n".join(["id,uri", *rows, ""]))
    command = ["minigdino", "run", "images.csv", PROMPT, "--out", "all", "--model", "shapes"]
    done = scheduled(folder, command)
    assert done.returncode == 0, done.stderr
    assert sum(len(line["detections"]) for line in lines(folder / "all")) > 8
    return folder


def scheduled(folder, command, **variables):
    """Run a command in a folder, with variables that a scheduler sets."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(command, cwd=folder, env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), **variables},
                          check=False, capture_output=True, text=True)


def lines(folder):
    """The lines of all files of a run, sorted by id."""
    found = [json.loads(line) for path in folder.glob("*.jsonl") for line in path.read_text().splitlines()]
    return sorted((line for line in found if "image" in line), key=lambda line: line["id"])


def array_task(folder, out, number, count, **variables):
    """A task of `sbatch --array=1-COUNT examples/slurm.sh images.csv "a cat. a dog." OUT`."""
    manifest, _, _ = shlex.split(re.search(r"examples/slurm.sh (.*)", SLURM)[1])
    done = scheduled(folder, ["sh", EXAMPLES / "slurm.sh", manifest, PROMPT, out], MINIGDINO_MODEL="shapes",
                     SLURM_ARRAY_TASK_ID=str(number), SLURM_ARRAY_TASK_COUNT=str(count), SLURM_CPUS_PER_TASK="1",
                     **variables)
    assert done.returncode == 0, done.stderr


def test_tasks_of_a_slurm_array_process_every_image_once(pictures):
    for number in (1, 2, 3):
        array_task(pictures, "slurm", number, 3)
    assert lines(pictures / "slurm") == lines(pictures / "all")
    before = {path: path.read_bytes() for path in (pictures / "slurm").glob("*.jsonl")}
    array_task(pictures, "slurm", 2, 3)  # requeued
    array_task(pictures, "slurm", 3, 1, SHARDS="3")  # submitted alone
    assert {path: path.read_bytes() for path in (pictures / "slurm").glob("*.jsonl")} == before
    assert len(before) == 3
    done = scheduled(pictures, ["minigdino", "merge", "slurm", "--jsonl", "merged.jsonl"])
    assert done.returncode == 0, done.stderr


def test_a_slurm_task_that_was_killed_continues(pictures):
    array_task(pictures, "killed", 1, 1)
    (path,) = (pictures / "killed").glob("*.jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole[: 2 * len(whole) // 3])
    array_task(pictures, "killed", 1, 1)
    assert lines(pictures / "killed") == lines(pictures / "all")


def test_the_options_of_the_slurm_array_fit_together():
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", SLURM, re.MULTILINE))
    assert {"requeue", "open-mode", "output", "cpus-per-task", "mem"} <= options.keys()
    assert len(options) == SLURM.count("#SBATCH")
    assert options["open-mode"] == "append" and "%A" in options["output"] and "%a" in options["output"]
    for shards, last in re.findall(r"SHARDS=(\d+) sbatch --array=\S*?(\d+) ", SLURM):
        assert int(last) <= int(shards)


def index(folder, number, count):
    """An index of the Kubernetes job."""
    (container,) = JOB_POD["containers"]
    (script,) = container["args"]
    command = [*container["command"], script.replace("grounding-dino-tiny", "shapes").replace("a cat. a dog.", PROMPT)]
    done = scheduled(folder, command, JOB_COMPLETION_INDEX=str(number), SHARDS=str(count))
    assert done.returncode == 0, done.stderr


def test_the_indexes_of_the_job_process_every_image_once(pictures):
    for number in range(2):
        index(pictures, number, 2)
    assert lines(pictures / "found") == lines(pictures / "all")


@pytest.mark.parametrize("start", [lambda folder: array_task(folder, "found", 1, 1),
                                   lambda folder: index(folder, 0, 1)])
def test_an_image_that_cannot_be_read_fails_no_task(tmp_path, start):
    """Its scheduler would start it again without end, or report the whole array as failed."""
    (tmp_path / "images.csv").write_text("id,uri\n7,missing.png\n")
    start(tmp_path)
    (line,) = lines(tmp_path / "found")
    assert line["error"].startswith("missing.png: no such file")


def test_the_job_has_an_index_per_shard_and_a_status_that_ends_it(tmp_path):
    (container,), (download,), spec = JOB_POD["containers"], JOB_POD["initContainers"], JOB["spec"]
    assert (JOB["apiVersion"], JOB["kind"], spec["completionMode"]) == ("batch/v1", "Job", "Indexed")
    variables = {variable["name"]: variable["value"] for variable in container["env"]}
    assert int(variables["SHARDS"]) == spec["completions"] >= spec["parallelism"]
    assert JOB_POD["restartPolicy"] == "Never" and "backoffLimitPerIndex" in spec  # which need each other
    (wrong,) = (rule["onExitCodes"]["values"] for rule in spec["podFailurePolicy"]["rules"] if "onExitCodes" in rule)
    done = scheduled(tmp_path, ["minigdino", "run", "images.csv", "a cat.", "--out", "found", "--workers", "many"])
    assert [done.returncode] == wrong
    script = container["args"][0].replace("$((JOB_COMPLETION_INDEX + 1))/$SHARDS", "1/100")
    arguments = cli.parser().parse_args(shlex.split(script)[2:])  # after "exec minigdino"
    assert cli.parser().parse_args(download["command"][1:]).id == arguments.model
    limits = container["resources"]["limits"]
    assert int(limits["cpu"]) == arguments.workers * arguments.threads
    volumes = {volume["name"] for volume in JOB_POD["volumes"]}
    for one in (container, download):
        assert {mount["name"] for mount in one["volumeMounts"]} == volumes
        assert one["securityContext"]["readOnlyRootFilesystem"]
        assert one["image"] == COMPOSE["services"]["minigdino"]["image"]
    assert JOB_POD["securityContext"]["runAsUser"] == int(step("USER"))
    assert step("VOLUME") in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_the_list_of_examples_is_complete():
    text = (EXAMPLES / "README.md").read_text()
    linked = {(EXAMPLES / link).resolve() for link in re.findall(r"\]\(([\w./-]+)\)", text)}
    files = itertools.chain(EXAMPLES.glob("*.*"), (EXAMPLES / "docker").glob("*"))
    assert {path for path in files if path.is_file()} - linked == {EXAMPLES / "README.md",
                                                                   DOCKERFILE.with_suffix(".dockerignore")}
