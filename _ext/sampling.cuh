// Bilinear sampling, shared by bilinear and deform_attn.

// total += weight * image at column x, row y; image [H, W, MD] starts at this thread's channel
//
// Outside the image, the index is clamped and the weight set to 0.
template <typename T>
__device__ void add_sample(const T *image, int H, int W, int MD, T x, T y, T weight, T &total) {
    if (!(x > -1 && x < W && y > -1 && y < H)) return;  // no pixel in reach, or NaN
    int top = int(floor(y)), left = int(floor(x)), bottom = top + 1, right = left + 1;
    const T dy = y - top, dx = x - left;
    T w00 = weight * (1 - dx) * (1 - dy), w01 = weight * dx * (1 - dy);
    T w10 = weight * (1 - dx) * dy, w11 = weight * dx * dy;
    if (top < 0) { top = 0; w00 = w01 = 0; }
    if (left < 0) { left = 0; w00 = w10 = 0; }
    if (bottom == H) { bottom = top; w10 = w11 = 0; }
    if (right == W) { right = left; w01 = w11 = 0; }
    const T *above = image + (long long)top * W * MD, *below = image + (long long)bottom * W * MD;
    const long long at_left = (long long)left * MD, at_right = (long long)right * MD;
    total += w00 * above[at_left] + w01 * above[at_right] + (w10 * below[at_left] + w11 * below[at_right]);
}
