"""Human action recognition: a real dataset, its features, and transfer between its sensors.

- ``utd_mhad``: UTD-MHAD's files as its authors laid them out;
- ``dataset``: its clips in memory, at fixed length;
- ``simulate``: a simulated dataset in the same files, for those who do not have the real one;
- ``splits``: which clip has which role;
- ``features``: random convolutions, the lift that makes room for perfect alignment;
- ``resnet``, ``encoders``: networks that encode videos and sensor series;
- ``pipeline``: batches and augmentation;
- ``contrastive``: training two encoders on unlabelled pairs;
- ``closed_form``: every closed-form alignment of one set of pairs;
- ``transfer``: train a classifier on one modality, use it on another.
"""
