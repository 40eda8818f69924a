"""What is learned: the `Task` protocol, the tasks that come with fedstream, their data, metrics and plots.

The only package that imports tensorflow or matplotlib, and only inside the functions and modules that need them:
importing `fedtask` or `fedtask.task` is cheap, so the server and the client can do it. Where to look for what:

The seam
- `task`: the `Task` protocol and what goes in and out of it.
- `registry`: finding a task by its name.
- `settings`: a task's settings, from text to typed values.
- `worker`, `worker_main`, `messages`: the worker process: its near end, its far end, and the JSON between them.
- `returned`: what a task returns, checked.
- `progress`: reports of a fine-tune as it goes.

The tasks
- `brain_mri`, `brain_mri_head`: the MRI model, and its last layer alone.
- `keras_task`: a base class for a Keras classifier of one's own.
- `linear`: a tiny task without tensorflow.
- `keras_model`, `keras_training`, `frameworks`, `quiet_start`: what tasks with Keras share.
- `checkpoints`: tensors out of a model file.

Their data
- `images`: labelled images in folders.
- `class_folders`, `division`: which folder holds which class, and one set divided among sites.

Scores, pictures and reports
- `metrics`, `intervals`: scores and how sure they are.
- `report`: the report of a federation.
- `plots`, `drawing`: pictures of one model, and how every picture looks.
- `history`, `history_picture`: a client's training history as a table and a picture.
- `adapters`: dataclasses as JSON, checked.
"""
