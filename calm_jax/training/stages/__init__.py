"""What can be trained, one file each: a function that makes a `Stage`.

`training.train` runs them all, with exact resume, rows seen, evaluations,
checkpoints and meshes. One more is one more file here.
"""
