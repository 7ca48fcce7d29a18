"""Face images gathered from folders of pictures and videos (seed 3.1)."""
