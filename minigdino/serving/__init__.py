"""`minigdino serve`: a web server for detection, with worker processes on one mapped weight file."""
