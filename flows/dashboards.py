"""``factory up`` and ``factory down``: the two dashboards."""

from rich.console import Console

from core.errors import ResourceError


def start() -> int:
    """Start what is not running yet and print where to look."""
    from flows.servers import up
    from flows.settings import read_settings

    console = Console(highlight=False)
    servers = up(read_settings(), progress=lambda line: console.print(line, style="dim"))
    if servers.prefect is None or servers.mlflow is None:
        raise ResourceError(
            "a server did not come up", fix="see the logs in .factory/logs, or run: factory doctor"
        )
    console.print(f"Prefect  {servers.prefect.url}\nMLflow   {servers.mlflow.url}")
    console.print("Runs use these from now on. Stop them with: factory down", style="dim")
    return 0


def stop() -> int:
    """Stop both servers."""
    from flows.servers import down
    from flows.settings import read_settings

    stopped = down(read_settings())
    Console(highlight=False).print("\n".join(f"stopped {name}" for name in stopped) or "nothing was running")
    return 0
