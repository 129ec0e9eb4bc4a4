"""`vlmcache fleet load-test`."""

from vlmcache.cli.fleet import fleet_of
from vlmcache.cli.loadtest import (
    AttentionName,
    ColdLibraries,
    DeviceName,
    Loaders,
    OnlyCold,
    Precisions,
    SyntheticModels,
    TokenCount,
    Trials,
    TrustRemoteCode,
)
from vlmcache.cli.options import Address, Answer, Call, Context, Nodes, Patterns, command

EXAMPLES = """Examples:

  vlmcache fleet load-test qwen_vl_2b
  vlmcache fleet load-test qwen_vl_2b --precision bf16,int8 --nodes 'gpu[1-4]'
  vlmcache fleet load-test --synthetic tiny --json"""


@command
def fleet_load_test(
    call: Call,
    models: Patterns = None,
    precision: Precisions = None,
    device: DeviceName = "auto",
    trials: Trials = 3,
    cold: OnlyCold = None,
    synthetic: SyntheticModels = None,
    tokens: TokenCount = 1,
    loader: Loaders = None,
    attention: AttentionName = None,
    cold_libraries: ColdLibraries = False,
    context: Context = None,
    trust_remote_code: TrustRemoteCode = False,
    address: Address = None,
    nodes: Nodes = None,
) -> Answer:
    """Measure how fast models load on all nodes at the same time, and name the slow ones.

    Each load runs in a fresh process on its node, until every weight is on the device.
    """
    fleet = fleet_of(call, address, nodes)
    return Answer(
        fleet.load_test(
            models or None,
            precision=precision or (),
            device=device,
            trials=trials,
            cold=cold,
            synthetic=synthetic or (),
            tokens=tokens,
            loader=loader or (),
            attention=attention,
            trust_remote_code=trust_remote_code,
            context=context,
            cold_libraries=cold_libraries,
        )
    )
