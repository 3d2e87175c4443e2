"""Videos: segmented frame by frame, and with objects removed. By PyAV (the extra `video`) and OpenCV.

PyAV reads and writes (FFmpeg with x264 and VP9 in its wheel, sound copied, timestamps exact), since OpenCV's own
reader drops sound, timestamps and transparency. OpenCV finds motion, inpaints, and opens cameras.
"""
