"""The command `medcomfort`: a thin face of the package."""

import argparse
import errno
import signal
import sys
from collections.abc import Sequence

try:
    from medcomfort_utils import paths
except KeyboardInterrupt:  # in the first moment
    sys.exit(130)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit code: 0, 1 (told in one sentence), 2 (usage) or 130 (interrupted)."""
    # Being told to end is like Ctrl-C: kernels are stopped, and nothing half-written stays. Ctrl-C itself is set too,
    # since a shell starts its background jobs with it ignored.
    for told in (signal.SIGINT, signal.SIGTERM):
        signal.signal(told, signal.default_int_handler)
    args = _parser().parse_args(argv)
    try:
        args.run(args)  # imports what it needs, within reach of Ctrl-C
    except paths.MedComfortError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(_sentence(error))
    except KeyboardInterrupt:
        return _fail("interrupted; finished steps are kept, and the same command goes on from there.", code=130)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="medcomfort", description="Rewrite, fine-tune, evaluate, draw: the paper.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    sub = commands.add_parser("reproduce", help="run the steps of a profile that are not up to date")
    sub.add_argument("--profile", required=True, metavar="NAME_OR_PATH", help="a name in notebooks/profiles, or a file")
    which = sub.add_mutually_exclusive_group()
    which.add_argument("--only", metavar="STEP", help="run this step (or all steps of this notebook) only")
    which.add_argument("--from", dest="start", metavar="STEP", help="start here; earlier steps are taken as done")
    sub.add_argument("--set", dest="settings", action="append", default=[], metavar="STEP.PARAM=VALUE", help="YAML")
    sub.add_argument("--name", metavar="RUN", help="the run's own folder, runs/RUN (default: the profile's name)")
    sub.add_argument("--dry-run", action="store_true", help="show the steps and their commands, run nothing")
    sub.add_argument("--force", action="store_true", help="run steps anew; what they wrote is kept until they end")
    jobs = "steps at the same time, on which no result hangs (default: 2; 1 with a GPU or one core)"
    sub.add_argument("--jobs", type=int, default=0, metavar="N", help=jobs)
    sub.set_defaults(run=_reproduce)
    sub = commands.add_parser("publish", help="put a run's results into data/results and the README")
    sub.add_argument("--name", default="nano", metavar="RUN", help="the run, and its folder's name (default: nano)")
    sub.set_defaults(run=_publish)
    sub = commands.add_parser("figures", help="draw every figure and table anew from a folder of results")
    sub.add_argument("--results", required=True, metavar="DIR", help="a run's folder, such as runs/mine")
    sub.add_argument("--out", metavar="FOLDER", help="default: runs/figures/, and the name of DIR")
    sub.set_defaults(run=_figures)
    sub = commands.add_parser("compare", help="print and draw what differs between two runs")
    for run in ("run_a", "run_b"):
        sub.add_argument(run, metavar=run.upper(), help="a name in runs/ or data/results/, or a folder")
    sub.add_argument("--out", default="runs/compare", metavar="FOLDER", help="default: runs/compare")
    sub.set_defaults(run=_compare)
    sub = commands.add_parser("doctor", help="say what will work on this machine, and what to do about the rest")
    sub.set_defaults(run=_doctor)
    sub = commands.add_parser("new-profile", help="write a profile for your own corpus, model and rewriter")
    sub.add_argument("--from", dest="origin", default="smoke", metavar="PROFILE", help="copied from (default: smoke)")
    sub.add_argument("--source", required=True, metavar="FILE", help="dialogues: a file, or hf:owner/name@REVISION")
    sub.add_argument("--model", required=True, metavar="ID", help="base model: a folder, or a hub id, ID@REVISION")
    sub.add_argument("--llm", default="", metavar="URL", help="OpenAI-compatible server that rewrites; else templates")
    sub.add_argument("--llm-model", default="", metavar="NAME", help="its model (default: the one that it serves)")
    sub.add_argument("--question-field", default="", metavar="NAME", help="default: detected")
    sub.add_argument("--answer-field", default="", metavar="NAME", help="default: detected")
    sub.add_argument("--name", default="", metavar="NAME", help="of the new profile (default: that of the corpus)")
    sub.set_defaults(run=_new_profile)
    return parser


def _reproduce(args: argparse.Namespace) -> None:
    from medcomfort_utils import flow

    named = ("only", "start", "settings", "name", "dry_run", "force", "jobs")
    folder = flow.reproduce(args.profile, **{name: getattr(args, name) for name in named})
    summary = folder / "summary.md"
    if not (args.dry_run or args.only) and summary.exists():
        print(f"\n{summary.read_text(encoding='utf-8')}", end="")


def _publish(args: argparse.Namespace) -> None:
    from medcomfort_utils.draw import paper

    print("published to", paths.tidy(paper.publish(paths.RUNS / args.name, args.name)))


def _figures(args: argparse.Namespace) -> None:
    import papermill

    results = paths.existing(args.results, "--results")
    out = paths.resolve(args.out or f"runs/figures/{results.name}")
    given = {"results_dir": str(results), "ablation_dir": str(results), "figures_dir": str(out / "figures"),
             "tables_dir": str(out / "paper"), "summary": str(out / "summary.md")}  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(paths.NOTEBOOKS / "04_figures.ipynb", out / "04_figures.ipynb", given,
                                   progress_bar=False, extra_arguments=["--log-level=CRITICAL"])  # fmt: skip
    except papermill.PapermillExecutionError as error:
        raise paths.MedComfortError(error.evalue) from None
    print("figures, tables and summary.md in", paths.tidy(out))


def _compare(args: argparse.Namespace) -> None:
    from medcomfort_utils.draw import compare

    print(compare.compare(args.run_a, args.run_b, args.out))


def _doctor(args: argparse.Namespace) -> None:
    from medcomfort_utils import doctor

    failed = 0
    for finding in doctor.examine():
        print(finding, flush=True)
        failed += finding.state == "fail"
    if failed:
        raise paths.MedComfortError(f"{failed} of these checks failed: mend what stands beside `fail`, and ask again.")


def _new_profile(args: argparse.Namespace) -> None:
    from medcomfort_utils import new_profile

    fields = (args.question_field, args.answer_field)
    path = new_profile.new_profile(args.origin, args.source, args.model, args.llm, args.llm_model, fields, args.name)
    print(f"{paths.tidy(path)} is written and checked; run it: medcomfort reproduce --profile {path.stem}")


def _sentence(error: OSError) -> str:
    where = f"{paths.tidy(error.filename)}: " if isinstance(error.filename, str) else ""
    hint = "; make room and run the same command again" if error.errno == errno.ENOSPC else ""
    return f"{where}{error.strerror or error}{hint}; what was finished before is untouched."


def _fail(sentence: str, code: int = 1) -> int:
    print(f"medcomfort: {sentence}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
