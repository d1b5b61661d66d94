"""Tests against real containerd, runc, overlayfs, FUSE and a real registry."""
