"The semantic term of a batch that is dealt out to processes is that of the whole batch, and so is its gradient"
import numpy as np, pytest, scipy.sparse as sp, torch
from torch import nn
from engine_toys import processes
from vaetag_nb.core.io import load_tensors, read_jsonl
from vaetag_nb.core.rng import seeded, torch_rng
from vaetag_nb.mining import SemanticTerm
from vaetag_nb.trainers.engine import Trainer
from vaetag_nb.trainers.loss_settings import WithPartners, term_of_all
from vaetag_nb.trainers.plan import shuffled
from vaetag_nb.trainers.task import Task, TensorSource

class Embed(Task):
    "A linear map whose outputs shall lie as their labels say; four rows have no label"
    def __init__(self, kind, planned, n=33):
        super().__init__()
        y = torch.eye(5)[torch.arange(n) % 5]*(torch.arange(n) % 9 > 0)[:, None]
        source = TensorSource(dict(z=torch.randn(n, 6, generator=torch_rng(0, 'z')), y=y))
        source.labels = sp.csr_matrix(y.numpy())
        self.source, self.plan = WithPartners(source, np.zeros(n), 0) if planned else source, shuffled(n, 8, 0)   # the last batch has one row
        self.term, self.planned = SemanticTerm(kind), planned
        with seeded(0, 'init'): self.net = nn.Linear(6, 4)
    def optims(self, total, per_epoch): return dict(main=(torch.optim.SGD(self.net.parameters(), lr=.5), None, ['net']))
    def loss_main(self, b, ctx):
        if not self.planned: return term_of_all(self.term, ctx.slice, self.net(b['z']), b['y'])
        e, p, n = self.net(torch.cat([b['z'], b['z_p'], b['z_n']])).chunk(3)
        return term_of_all(self.term, ctx.slice, e, b['y'], (p, b['y_p'], n, b['y_n'], b['valid']))

def train(out, kind, planned): Trainer(Embed(kind, planned), out, epochs=2, accumulate=2, device='cpu', log_every=1, max_grad_norm=0).fit()

@pytest.mark.parametrize('planned', [False, True], ids=['mined', 'planned'])
@pytest.mark.parametrize('kind', ['triplet', 'contrastive'])
def test_three_processes_learn_what_one_learns(kind, planned, tmp_path, monkeypatch):
    monkeypatch.setenv('VAETAG_QUIET', '1')
    torch.set_num_threads(1)
    train(tmp_path/'1', kind, planned)
    assert processes(lambda: train(tmp_path/'3', kind, planned), 3) == [0]*3
    one, three = ([l for l in read_jsonl(tmp_path/n/'log.jsonl') if l['kind'] == 'step'] for n in '13')
    figure = dict(triplet='triplet_valid', contrastive='pairs_valid')[kind]
    assert len(one) == 6 and any(l[figure] > 0 for l in one)
    for a, b in zip(one, three, strict=True):
        for k in ('loss', 'grad_norm', figure): assert a[k] == pytest.approx(b[k], abs=1e-5), (k, a, b)
    a, b = (load_tensors(sorted((tmp_path/n/'checkpoints').iterdir())[-1]/'net.safetensors')[0] for n in '13')
    for k in a: torch.testing.assert_close(a[k], b[k], atol=1e-5, rtol=1e-4)
