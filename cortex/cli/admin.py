"""The commands that only an admin may give: who gets into a cluster, who is put out of it, and its end."""

from __future__ import annotations

import time

import click

from cortex.cli.connection import connected, of_cluster
from cortex.cli.options import HELP, as_json
from cortex.cli.terminal import aligned, guarded, plain, print_json
from cortex.errors import EXIT_DONE, UsageError
from cortex.ids import Role, is_token_id
from cortex.limits import TOKEN_S, TOKEN_USES
from cortex.units import format_seconds


@click.group(name="token", context_settings=HELP)
def token() -> None:
    """Join tokens: how nodes and clients get in. Only an admin may.

    \b
    Examples:
      cortex token create
      cortex token create --role client --hours 1 --uses 1
      cortex token list
      cortex token revoke t0123456789ab
    """


@token.command(name="create", context_settings=HELP)
@click.option(
    "--role", type=click.Choice(["node", "client", "admin", "monitor"]), default="node", show_default=True
)
@click.option(
    "--hours", type=click.FloatRange(min=0, min_open=True), default=TOKEN_S / 3600, show_default=True
)
@click.option("--uses", type=click.IntRange(min=1), default=TOKEN_USES, show_default=True)
@of_cluster
@as_json
def token_create(
    role: str, hours: float, uses: int, home: str | None, server: str | None, as_json: bool
) -> int:
    """Print a new join line. It holds a secret: give it only to whom it is for."""

    def command() -> int:
        from cortex.wire.messages import CreateToken, TokenCreated

        with connected(home, server) as connection:
            made = connection.ask(CreateToken(Role(role), hours * 3600, uses), TokenCreated)
        if as_json:
            print_json(plain(made))
        else:
            print(("cortex node --join " if role == "node" else "cortex login ") + made.join_line)
        return EXIT_DONE

    return guarded(command, as_json)


@token.command(name="list", context_settings=HELP)
@of_cluster
@as_json
def token_list(home: str | None, server: str | None, as_json: bool) -> int:
    """List join tokens, without their secrets."""

    def command() -> int:
        from cortex.wire.messages import ListTokens, TokenList

        with connected(home, server) as connection:
            found = connection.ask(ListTokens(), TokenList).tokens
        if as_json:
            print_json(plain(found))
            return EXIT_DONE
        now = time.time()
        rows = [
            [
                each.token_id,
                each.role.value,
                f"{each.uses} of {each.uses_max}",
                "revoked" if each.revoked_at else "expired" if each.expires_at <= now
                else f"for {format_seconds(each.expires_at - now)}",
            ]
            for each in found
        ]  # fmt: skip
        print("\n".join(aligned(["token", "role", "uses", "good"], rows, set())) if rows else "no tokens")
        return EXIT_DONE

    return guarded(command, as_json)


@token.command(name="revoke", context_settings=HELP)
@click.argument("token_id", metavar="ID")
@of_cluster
def token_revoke(token_id: str, home: str | None, server: str | None) -> int:
    """End a join token, or put out the member of this id.

    Who has joined with a token stays. A node, client or admin that is put out is cut off at once, everywhere,
    and its certificates count for nothing. Ids are in `cortex status` (nodes) and `cortex jobs` (owners).

    \b
    Examples:
      cortex token revoke t0123456789ab
      cortex token revoke n0123456789ab
    """

    def command() -> int:
        from cortex.wire.messages import AdminDone, RevokePeer, RevokeToken

        with connected(home, server) as connection:
            if token_id == connection.identity.id:
                raise UsageError(f"{token_id} is you", cure="another admin may put you out")
            revoke = RevokeToken(token_id) if is_token_id(token_id) else RevokePeer(token_id)
            connection.ask(revoke, AdminDone)
        print(f"{token_id} is revoked")
        return EXIT_DONE

    return guarded(command)


@click.command(name="kill-cluster", context_settings=HELP)
@click.option("--yes", is_flag=True, help="Do not ask.")
@of_cluster
def kill_cluster(yes: bool, home: str | None, server: str | None) -> int:
    """End every node and the server. Jobs under way are lost.

    \b
    Examples:
      cortex kill-cluster
      cortex kill-cluster --yes
    """

    def command() -> int:
        from cortex.wire.messages import AdminDone, KillCluster

        with connected(home, server) as connection:
            if not yes:
                click.confirm(f"End the cluster at {connection.endpoint}?", abort=True)
            connection.ask(KillCluster(), AdminDone)
        print("the cluster has ended")
        return EXIT_DONE

    return guarded(command)
