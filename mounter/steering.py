"""Which ordinary directories may stand in a lazy lower.

A lazy lower is mounted with metacopy=on, so a regular file with the xattr `trusted.overlay.metacopy` is
read from where its `trusted.overlay.redirect` points, and the data-only layers behind hold every lazy
layer of the node. An image whose tar archive carries those xattrs, unpacked onto a plain directory,
would read other images' files. META trees are our own work and need no check.
"""

from __future__ import annotations

import errno
import os

from mounter.errors import SteeringAttribute
from mounter.redirects import METACOPY


def refuse_steering(directory: str) -> None:
    """Look at every regular file below `directory` (about 3 us each).

    Raises SteeringAttribute, naming the first file that overlayfs would read from elsewhere, and OSError.
    """
    pending = [directory]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                elif entry.is_file(follow_symlinks=False) and _is_metacopy(entry.path):
                    raise SteeringAttribute(
                        f"{entry.path} is a metacopy file: its data would come from another place",
                        path=entry.path,
                    )


def _is_metacopy(path: str) -> bool:
    try:
        os.getxattr(path, METACOPY, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return False
        raise
    return True
