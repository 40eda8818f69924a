"""What is learned: the `Task` protocol, the tasks that come with fedstream, their data, metrics and plots.

The only package that imports tensorflow or matplotlib, and only inside the functions and modules that need them:
importing `fedtask` or `fedtask.task` is cheap, so the server and the client can do it.
"""
