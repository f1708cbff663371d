"""What each part of the system is worth: every comparison off and on, on the same images, with what it costs.

    ablation_data.py        a competition's images, prepared, with the ground truth of its test part
    trained_variants.py     the models that are trained (variants of a stage), and their predictions for unseen images
    compared_systems.py     whole systems made of variants, and the comparisons: two systems that differ in one thing
    ablation_experiment.py  trains all variants on all competitions, shared between processes
    changed_parts.py        each change of a preset by itself, cross-validated on a folder's own images
    ablation_table.py       average precisions of each comparison over the competitions, their spread and their cost

Everything lies in one folder, with a folder per competition; what is there is not made again.
"""
