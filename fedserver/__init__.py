"""The coordinator's side: the `fedserver` command and the server. Where to look for what, from the command line down.

Which of these may import which, `pyproject.toml` says.

The command line
- `cli`, `cli_stored`: the commands and their help; the second has those that work on what is stored.
- `commands`: what each command does, a module each.
- `options`, `cli_words`: options that several commands have, and how words in them are read.
- `config`: every setting with its bounds; a TOML file, and options over it.
- `exit_codes`, `signals`: how a command ends.

Without a running server
- `doctor`: checks before a start.
- `verification`: the ledger, the stored files and every aggregate, checked again.
- `conformance`: scenes for a client in any language, and the verdict.

The process
- `server`: ports, services, and what is started and stopped in which order.
- `runtime`, `open_files`: how the interpreter and the process are set up.
- `addresses`, `admin_socket`: where the server listens, for sites and for local commands.
- `bounds`: what peers may use of it of whom nothing is known yet.
- `metrics`, `metrics_port`: numbers for Prometheus.

What clients ask of it
- `services`: one servicer for each service of the contract. gRPC and its messages stop there.
- `gate`, `office`: with certificates asked for, the check on every call; and where sites are invited.
- `desk`: uploads, from the first byte to in, quarantined or late.

What a federation does by itself, in this order
- `preparation`: settings, task and data, before anybody is let in.
- `starting_model`: the first model, or the one to go on from.
- `holdout`, `overlap`, `data_files`: which images score the models, and whether a test set shares some of them.
- `driver`: rounds, one after the other.
- `phases`: the phases of one round.
- `drawing_up`: a round's rules, and what each client is offered.
- `disk_trouble`: waiting for a disk that refuses.
- `upkeep`: collecting what is no longer kept, and facts for another start.
- `results`, `records`, `report_notes`: the last scores, model files and the report.
- `farewell`: every client hears how it ended.

What all of these share
- `federation`: one federation's state.
- `evaluation`: the worker process that builds, scores, exports and draws.
- `intake`: a round's updates on their way into the aggregate.
- `ledger`: what the ledger is told of a round.
- `sessions`, `notices`: what is to be said to which client, and when idle ones are told what is waited for.
- `handshake`: whether a client may take part.
- `register`: what is kept of each client.
- `enrolment`: invitations, certificates and the audit log.
- `disk`, `traffic`, `working_time`, `pace`, `clock`: how the disk is, bytes moved, time worked and to go, and the clock
  as a seam.

At the bottom
- `store`: the state directory. What is durable is written here and nowhere else.
- `aggregation`: which updates are fit, what each weighs, and their exact mean.
- `ahead`: making the next of something while the one before is in use.
- `coordinator`: the pure state machines of a round, its clients and the best model.
"""
