"""Human action recognition: a real dataset, its features, and transfer between its sensors.

- ``utd_mhad``: UTD-MHAD's files as its authors laid them out;
- ``dataset``: its clips in memory, at fixed length;
- ``splits``: which clip has which role;
- ``features``: random convolutions, the lift that makes room for perfect alignment;
- ``closed_form``: every closed-form alignment of one set of pairs;
- ``transfer``: train a classifier on one modality, use it on another.
"""
