"""What each part of the system is worth: every item off and on, on the same images, with what it costs.

    material.py   the images of a competition, prepared, with the truth of its test part
    arms.py       the models that are trained, and what each says of images that it did not see
    systems.py    whole systems made of arms, and the items: two systems that differ in one thing
    table.py      every item's average precisions over several competitions, their spread and their cost

All lies in one folder, a folder per competition in it, and nothing that lies there is made again.
"""
