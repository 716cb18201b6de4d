"""Probe, decode, encode, assemble, verify: the only door to ffmpeg and PyAV."""
