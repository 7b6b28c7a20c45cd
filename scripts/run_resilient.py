#!/usr/bin/env python
"""Start a training job again whenever it fails, with the hosts that answer, until it is done."""

from __future__ import annotations

import importlib.util
import sys

# Importing the package would import MXNet: memory and threads beside the job's for days, and an
# OMP_NUM_THREADS that each rank would take for the user's. The modules below do without.
sys.modules.setdefault("gluon_resnest", importlib.util.module_from_spec(
    importlib.util.find_spec("gluon_resnest")))

from gluon_resnest import command_line  # noqa: E402
from gluon_resnest.errors import InputError  # noqa: E402
from gluon_resnest.jobs.hosts import parse_hosts, read_hostfile  # noqa: E402
from gluon_resnest.jobs.supervisor import Policy, Supervisor  # noqa: E402
from gluon_resnest.jobs.supervisor_events import Events  # noqa: E402

EXAMPLES = """
  one process:
    python scripts/run_resilient.py -- python train_imagenet.py --model resnest50 \\
        --rec-train train.rec --save-dir runs/r50
  8 ranks on this host:
    python scripts/run_resilient.py --np 8 -- python train_imagenet.py ... --save-dir runs/r50
  two hosts, or what is left of them, but not fewer than 8 ranks:
    python scripts/run_resilient.py --hosts host1:8,host2:8 --min-np 8 --log runs/r50.log \\
        -- python train_imagenet.py ... --save-dir /shared/runs/r50
  in a script for sbatch (#SBATCH --no-kill: a host that fails must not end the job):
    scontrol show hostnames "$SLURM_JOB_NODELIST" | sed 's/$/ slots=8/' > hosts
    exec python scripts/run_resilient.py --hostfile hosts -- python train_imagenet.py ...
  the same, if srun starts the ranks:
    exec python scripts/run_resilient.py -- srun ... bash -c 'export HOROVOD_RANK=$SLURM_PROCID ...
        exec python train_imagenet.py ... --save-dir /shared/runs/r50'   # see docs/cluster.md

The command must name its run directory (--save-dir), where checkpoints are looked for. Given up
is a job that failed twice in a row without a new one. SIGTERM and SIGINT are passed on to the job
and end the supervisor after it; SIGUSR1 asks the ranks on this host for a checkpoint.

exit codes: 0 the command succeeded, 1 given up, 2 bad input, 128 + n ended by signal n
"""


def main() -> None:
    words = sys.argv[1:]
    separator = words.index("--") if "--" in words else len(words)
    own, command = words[:separator], words[separator + 1:]
    parser = command_line.parser(__doc__, EXAMPLES)
    parser.usage = "%(prog)s [flags] -- COMMAND"
    parser.add_argument("--np", "-np", type=command_line.positive, metavar="N",
                        help="start the command by horovodrun, on N ranks")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--hosts", "-H", metavar="HOST:SLOTS,...",
                       help="on these hosts (default: this one); those that do not answer by ssh "
                            "are left out of a start, and their ranks with them")
    where.add_argument("--hostfile", type=command_line.path, metavar="FILE",
                       help="the same, a line for each: 'host slots=8' or 'host:8'")
    parser.add_argument("--min-np", type=command_line.positive, metavar="N",
                        help="wait for hosts rather than start with fewer ranks (default: 1)")
    parser.add_argument("--ssh-timeout", type=command_line.positive, metavar="S",
                        default=Policy.ssh_timeout,
                        help="seconds in which a host must answer (default: %(default)s)")
    parser.add_argument("--max-restarts", type=command_line.not_negative, metavar="N",
                        default=Policy.max_restarts,
                        help="in all; each wait for hosts counts as one (default: %(default)s)")
    parser.add_argument("--backoff", type=command_line.not_negative_number, metavar="S",
                        default=Policy.backoff,
                        help="seconds before a restart, doubled while nothing is gained, up to "
                             "600 (default: %(default)g)")
    parser.add_argument("--log", type=command_line.path, metavar="FILE",
                        help="append what happens to this file, too")
    args, unknown = parser.parse_known_args(own)
    if unknown and command:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if not command:
        raise InputError("the command is missing: write it after `--`, as in `run_resilient.py "
                         "--np 8 -- python train_imagenet.py --save-dir runs/x`")
    hosts = None
    if args.hosts is not None:
        hosts = parse_hosts(args.hosts)
    elif args.hostfile is not None:
        hosts = read_hostfile(args.hostfile)
    elif args.min_np is not None and args.np is None:
        raise InputError("--min-np needs --hosts, --hostfile or --np: without them the command is "
                         "run as it is")
    policy = Policy(args.max_restarts, args.backoff, args.min_np or 1, args.ssh_timeout)
    sys.exit(Supervisor(command, args.np, hosts, policy, Events(args.log)).run())


if __name__ == "__main__":
    command_line.run(main)
