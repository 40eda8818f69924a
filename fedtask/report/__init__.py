"""The report of a federation: a record of plain facts (`record`), and what is made of it (`render`).

Importing this package or `fedtask.report.record` loads no plotting library; `fedtask.report.render` does.
"""
