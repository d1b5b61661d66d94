"""scripts/bench: what layergate is worth, as ratios to containerd's own overlayfs within one run.

| module | has |
|---|---|
| `host` | the machine: private directories, page cache, conditions |
| `link` | a slow link to a network namespace |
| `registry` | a registry at its far end |
| `group` | CPU time and memory of a set of processes |
| `engines` | what is compared: overlayfs, layergate |
| `pulls` | one cold pull and run, measured |
| `reads` | reading the tree afterwards |
| `report` | medians, goals, Markdown, JSON |
"""
