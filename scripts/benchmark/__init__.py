"""scripts/bench: what layergate is worth, as ratios to containerd's own overlayfs within one run.

| module | has |
|---|---|
| `recipes` | the images that are measured, and their workloads |
| `host` | the machine: private directories, page cache, conditions |
| `link` | a slow link to a network namespace |
| `registry` | a registry at its far end |
| `group` | CPU time and memory of a set of processes |
| `engines` | what is compared: overlayfs, layergate |
| `peer` | and a stargz-snapshotter that the user has |
| `pulls` | one cold pull and run, measured |
| `reads` | reading the tree afterwards |
| `misses` | opening and reading what is not here |
| `growth` | ever more files, layers, images |
| `runs` | which of these on what, each on a fresh file system |
| `results` | all that was measured, as the JSON file has it |
| `goals` | medians, ratios, percentiles, against what is wanted |
| `report`, `plots` | Markdown, PNG |
"""
