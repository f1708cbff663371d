"""What the notebook calls: the steps of one run from its parameters to submission.csv.

In: the notebook's parameters. Out, in one folder: submission.csv, the trained weights, the scores where the ground
truth is at hand, and run.json, the record of what was planned, done, dropped and recovered from.

    parameters, kernel_inputs        what is asked for, and what is found
    weights_sources, earlier_sessions
                                     which of several folders a file comes from, and what earlier sessions trained
    step_profile, step_forecast      measured seconds, and what the steps will take by them
    queue_forecast                   how long trainings take side by side, and whether that is sooner
    run_plan, replanning             what of the preset runs, and how that changes
    time_budget, recovery            the hours that are left, and what catches a failing step
    prepare_images, train_models, side_by_side_training, stage_models, predict_test_images, write_submissions,
    scoreboard                       the work, in the order of the steps
    gpu_throughput, session_jobs, week_schedule, week_table
                                     the sessions of a training on Kaggle, before the first of them runs
    pretraining_session              one that trains on NIH and RSNA, before those of the competition
    run, run_record, run_summary     one run, its run.json, and the text that the notebook ends with
"""
