"""Transfer without labels of the target, in closed form.

- ``transfer``: who may see what; a decoder trained on one modality and scored on another;
- ``methods``: every alignment between the two, one list for all experiments;
- ``estimates``: what scores over clips, splits and seeds say, with their intervals.
"""
