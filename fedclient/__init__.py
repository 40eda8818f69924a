"""A site's side: the `fedclient` command and the client. Where to look for what.

The command line
- `cli`, `looking`: the commands and their help; the second has those that only look.
- `command`: what the commands do once their options are read.
- `options`, `config`: the options, and every setting with its bounds.
- `exit_codes`: how the command ends.
- `display`: progress for people.
- `doctor`, `preview`: checks before a start, and what would leave the machine.
- `features`: images as features for `brain_mri_head`.

Taking part, from the whole to the parts
- `client`: from start to end, one session after another.
- `workplace`: what one task sets up, for all sessions.
- `session`: one stream of the negotiation.
- `offers`, `reply`: what is answered to an offer, and the decision itself.
- `job`, `tools`: the work on one offer, and what it works with.
- `training`: the task and its data in the worker process.
- `upload`, `download`: weights there and back, resumed after any cut.
- `final_models`, `ending`: the final models, and that a federation is over.
- `declined`: why the server declined, for people.

What is sent
- `events`, `codec`: what is said in a negotiation, as own types and as messages.
- `introduction`, `requests`: the hello, and every other request.
- `reporting`: which metrics may leave.

The connection
- `connection`, `proxies`: the one channel to the server, and proxies on the way.
- `calls`: errors of calls in the project's words, and coming back after them.
- `chunk_size`: how large chunks may be on this line.
- `trust`, `identity`: whom the client trusts and what it shows of itself.
- `join`, `renewal`: how a certificate is got, and the next one.

What is kept on disk, or measured
- `models`, `partial`, `global_models`: models that are here, on their way, and worth keeping.
- `updates`, `packing`: finished fine-tunes, and their encoded form.
- `memory`, `sealed`: what is remembered from round to round, and the form of small files.
- `keepsakes`, `latest`: what is kept of training for people, drawn not too often.
- `pace`: how long epochs and transfers take here.
- `full_disk`: writing to a disk that may be full.
"""
