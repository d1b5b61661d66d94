"""`layergate doctor`."""

from __future__ import annotations

import click

from snapshotter.cli.options import address_option, json_option, root_option, verbose_option


@click.command()
@root_option
@address_option
@click.option(
    "--containerd-config",
    type=click.Path(dir_okay=False),
    default="/etc/containerd/config.toml",
    show_default=True,
    help="containerd's configuration.",
)
@json_option
@verbose_option
def command(root: str, address: str, containerd_config: str, as_json: bool) -> int:
    """Say whether this host can pull lazily, in which mode, and what to do if not.

    Tries each thing with a real mount, in a directory of its own below the data
    directory, and changes nothing.

    \b
    Examples
      layergate doctor
      layergate doctor --root /data/layergate

    Exit codes: 0 if lazy pulling will work, 1 if not.
    """
    import json
    import textwrap

    from snapshotter.doctor import as_dict, lazy_pulling_works, run_checks

    checks = run_checks(root, containerd_config, address=address)
    works = lazy_pulling_works(checks)
    if as_json:
        click.echo(json.dumps(as_dict(checks), indent=2))
        return 0 if works else 1
    marks = {
        True: click.style(" ok ", fg="green"),
        False: click.style("FAIL", fg="red"),
        None: click.style("warn", fg="yellow"),
    }
    for check in checks:
        click.echo(f"[{marks[check.ok]}] {check.name}: {check.detail}")
        if check.remedy:
            click.echo(textwrap.indent(textwrap.fill(f"-> {check.remedy}", 72), " " * 7))
    click.echo("Lazy pulling will work here." if works else "Lazy pulling will not work here yet.")
    return 0 if works else 1
