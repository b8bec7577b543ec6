"What all tests share: where the real data lies, and hypothesis without deadlines on a busy machine"
import os, signal
from pathlib import Path
import pytest
from hypothesis import HealthCheck, settings

settings.register_profile('house', deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
settings.load_profile('house')
os.environ.pop('VAETAG_QUIET', None)   # tests read the remarks on standard error; those that want none say so
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN: signal.signal(signal.SIGINT, signal.default_int_handler)   # so starts a background job

ROOT = Path(__file__).resolve().parents[1]

@pytest.fixture(autouse=True, scope='session')
def forks_stay_possible():
    "A first backward pass before anything else: after torch.export the first one starts threads, and no fork of the process could train"
    import torch
    torch.ones(1, requires_grad=True).sum().backward()

@pytest.fixture(autouse=True, scope='module')
def remarks_again():
    "What a module's own fixtures silence is heard again in the next one"
    yield
    os.environ.pop('VAETAG_QUIET', None)

@pytest.fixture(scope='session')
def shared():
    "The folder of real data and weights; the test is skipped, with the reason, where it is absent"
    p = Path(os.environ.get('VAETAG_SHARED', ROOT.parent/'shared'/'data'))
    if not (p/'PROVENANCE.json').exists(): pytest.skip(f'real data not found: set VAETAG_SHARED to its folder (looked in {p})')
    return p
