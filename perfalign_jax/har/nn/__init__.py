"""Networks that encode recordings, and their training; needs Flax and Orbax.

- ``resnet``, ``encoders``: networks that encode videos and sensor series;
- ``training``: training two encoders on unlabelled pairs;
- ``decoder``: the paper's decoder of actions.
"""
