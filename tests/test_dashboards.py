"""The predictions dashboard without a browser: what a control does, and what happens when something is wrong."""
import threading, time
import numpy as np, pytest
from toy_tagger import toy_tagger
from vaetag_nb.core.errors import VaetagError
from vaetag_nb.browse.scored_set import truth_of
from vaetag_nb.dashboards import Predictions, chosen_rows, count, predictions_picture, score_all
from vaetag_nb.data.tags import Vocab
from vaetag_nb.infer import Tagger

@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    d = tmp_path_factory.mktemp('toy')
    table, _ = toy_tagger(d)
    tagger = Tagger.load(d/'model', device='cpu')
    return table, tagger, score_all(tagger, table)

@pytest.fixture
def dash(toy): return Predictions(toy[1], toy[2], side=48)

def views(d): return d.image.value, d.recon.value, d.sheet.value

def test_every_picture_is_shown_once(dash, toy):
    names = set()
    for _ in range(len(toy[0])):
        names.add(dash.note.value.split('<b>')[1].split('</b>')[0])
        dash.next.click()
    assert names == set(toy[0].ids) and dash.position.value == 1
    dash.prev.click()
    assert dash.position.value == len(toy[0])

def test_counts_follow_the_thresholds(dash, toy):
    table, tagger, scored = toy
    truth = table.labels.toarray() >= .5
    for factor in (.2, 1., 2.):
        dash.scale.value = factor
        p = scored.scores >= dash.thresholds
        recall = (p & truth).sum()/truth.sum()
        assert f'recall {recall:.3f}' in dash.counts.value
    dash.rule.value, dash.level.value = 'global', .99
    assert (dash.scale.layout.display, dash.level.layout.display) == ('none', None)
    assert count(scored, dash.thresholds).tp.sum() == ((scored.scores >= np.float32(.99)) & truth).sum()

def test_filters(dash, toy):
    table, tagger, scored = toy
    tag = table.vocab.names[0]
    truth, p = table.labels.toarray()[:, 0] >= .5, scored.scores[:, 0] >= scored.thresholds[0]
    dash.tag.value = tag
    for show, want in {'all': p | truth, 'true': truth, 'predicted': p, 'hit': p & truth, 'false alarm': p & ~truth, 'missed': ~p & truth}.items():
        dash.show.value = show
        assert dash.rows.tolist() == np.flatnonzero(want).tolist()
        if want.any(): assert dash.row == dash.rows[dash.position.value - 1]
        else: assert 'no picture' in dash.note.value

def test_the_picture_stays_when_the_filter_leaves_it(dash):
    dash.position.value = 5
    here = dash.row
    tag = dash.tagger.vocab.names[int(np.flatnonzero(dash.scored.row_truth(here))[0])]
    dash.tag.value = tag
    assert dash.row == here

def test_a_bare_set_and_a_lost_file(toy, tmp_path):
    table, tagger, _ = toy
    from pathlib import Path
    for k in range(2): (tmp_path/f'{k}.png').write_bytes(Path(table.paths[k]).read_bytes())
    (tmp_path/'broken.png').write_bytes(b'x')
    d = Predictions(tagger, tmp_path, side=32)
    assert len(d.scored) == 2 and d.scored.truth is None and 'tags predicted' in d.counts.value
    (tmp_path/'1.png').unlink()
    d.next.click()
    assert 'role="alert"' in d.note.value and '1.png' in d.note.value
    with pytest.raises(VaetagError, match='none of'): score_all(tagger, [tmp_path/'broken.png'])

def test_truth_in_another_vocabulary(toy):
    table = toy[0]
    back = Vocab(['unknown', *table.vocab.names[::-1]])
    t = truth_of(table, back).toarray()
    assert not t[:, 0].any() and (t[:, 1:][:, ::-1] == (table.labels.toarray() >= .5)).all()

def test_bars_are_text_not_markup(toy):
    from vaetag_nb.pictures import tag_bars
    html = tag_bars(['<script>alert(1)</script>'], [.5], [.4], style=False)
    assert '<script>' not in html and '&lt;script&gt;' in html

def test_picture(toy):
    assert len(predictions_picture(toy[2], rows=[0, 1, 2], cols=2).axes) == 8
    assert chosen_rows(toy[2], toy[2].thresholds).tolist() == list(range(len(toy[0])))

def test_browsers_open_by_one_call(toy, tmp_path):
    from vaetag_nb import dashboards
    from vaetag_nb.bucketing import Preprocess
    from vaetag_nb.latents.encode import encode_table
    from vaetag_nb.models.cyclegan import generator
    from vaetag_nb.models.cyclegan_folder import CycleGan
    from vaetag_nb.translate import Translator
    table, tagger, _ = toy
    b = dashboards.tags(table, most=4)
    n = table.counts()
    assert b.tag.options[0][1] == n.argmax() and len(b.rows) == n.max() and sum('src' in i for i in b.wall.items) == 4
    encode_table(table.ids, table.paths, tagger.codec, tmp_path/'store', Preprocess(base=48, max=96, step=8))
    l = dashboards.latents(tmp_path/'store', tagger.codec, side=48)
    before = l.sheet.value
    l.next.click()
    assert '2 of 24' in l.note.value and l.sheet.value != before and sum('src' in i for i in l.near.items) == 6 and l.decoded.value
    r = dashboards.reconstructions({'a': tagger.codec, 'b': tagger.codec}, table.paths[:5], side=48)
    assert r.figures['a'].equals(r.figures['b']) and r.order[0] == r.figures['a']['psnr'].idxmin()
    nets = [generator('residual', tagger.codec.channels, 0, n, ngf=8, n_res_blocks=1) for n in 'GF']
    t = dashboards.translation(Translator(CycleGan(*nets, space='model', codec=tagger.codec.spec()), tagger.codec, 'cpu'), dict(a=tmp_path/'store', b=table.paths[:5]), side=64)
    t.edge.value = 0; made = t.image.value
    t.after.value = 'and back'
    assert '1 of 24' in t.note.value and t.image.value == made     # an untrained network changes nothing
    t.direction.value, t.before.value = 'b2a', 'VAE only'
    assert '1 of 5' in t.note.value and 'VAE only | and back' in t.note.value

def test_controls_answer_while_all_is_measured(toy):
    "A control gets its turn before the next step; the picture looked at stays; stopped, it keeps what is measured and goes on with the rest."
    from vaetag_nb import dashboards
    table, tagger, _ = toy
    r = dashboards.reconstructions(tagger.codec, table.paths[:8], side=48, first=2, lpips=None)
    steps, inside, answered, step = [], threading.Event(), threading.Event(), r.all.step
    def watched(rows):
        if len(steps) == 1:
            inside.set()
            while not r.turns.door.locked(): time.sleep(.001)     # until somebody waits
        if len(steps) == 2: answered.wait(60)
        step(rows); steps.append(rows)
    r.all.step, r.all.most = watched, 1
    r.all.button.click()
    assert inside.wait(60) and r.all.button.description == 'stop'
    r.next.click()
    name = r.note.value.split('</b>')[0]
    assert len(steps) == 2 and '2 of 2' in r.note.value and r.all.running
    r.all.button.click(); answered.set()
    assert r.all.join(60) and steps == [[2], [3], [4]] and (len(r.order), r.all.progress.value, r.all.button.description) == (5, 5, 'measure all')
    assert f'{r.position.value} of 5' in r.note.value and r.note.value.split('</b>')[0] == name
    r.all.start()
    assert r.all.join(60) and sorted(r.order) == list(range(8)) and r.all.button.disabled

def test_figures_are_those_of_eval_recon(toy, shared):
    "Measured step by step, with a real LPIPS, as at once"
    from vaetag_nb import dashboards
    from vaetag_nb.eval.images import Lpips
    from vaetag_nb.latents.codec import Codec
    from vaetag_nb.recon import ReconSettings, evaluate_recon
    codec, files, trunk = Codec.embedded(), toy[0].paths[:6], shared/'weights/squeezenet/squeezenet1_1_caffe_fp16.pth'
    r = dashboards.reconstructions(codec, files, lpips=Lpips('squeeze', trunk), first=2, side=48)
    r.all.start()
    assert r.all.join(60) and len(r.order) == 6
    table = evaluate_recon(codec, files, settings=ReconSettings(metrics=('psnr', 'ssim', 'lpips'), lpips_net='squeeze', lpips_weights=str(trunk), bootstrap=0)).table
    for k in ('psnr', 'ssim', 'lpips'): np.testing.assert_allclose(r.figures['reconstruction'][k], table[k], rtol=1e-3, atol=1e-5)

def test_a_tag_over_all_pictures(toy):
    from vaetag_nb import dashboards
    table, tagger, scored = toy
    b = dashboards.tag_browser(scored, most=4)
    for k in (b.tag.options[0][1], b.tag.options[-1][1]):
        b.tag.value, b.show.value, b.threshold.value = k, 'hit', .3
        y, s = scored.truth[:, [k]].toarray().ravel().astype(bool), scored.scores[:, k]
        assert sorted(b.rows) == np.flatnonzero(y & (s >= np.float32(.3))).tolist() and (np.diff(s[b.rows]) <= 0).all()
        b.show.value = 'all'
        assert len(b.rows) == len(table) and len(b.wall.items) == 4
    assert set(b.moved.values()) <= {.3} and len(b.moved) == 2

def test_a_browser_says_which_picture_is_lost(toy, tmp_path):
    from vaetag_nb import dashboards
    table = toy[0]
    lost = table.with_columns()
    lost.paths = [str(tmp_path/'gone.png')]*len(lost)
    b = dashboards.tags(lost)
    b.wall.at = 0
    assert all(i['alert'] and 'src' not in i for i in b.wall.items) and 'role="alert"' in b.view.value and 'role="alert"' in b.wall.still()

def test_nearest_latents():
    "Of a set and a copy moved a little, each row's neighbour is its copy"
    from vaetag_nb.browse.latents import nearest_rows
    x = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32)
    x = np.concatenate([x, x + .01])
    assert all(nearest_rows(x, i, 1)[0] == (i + 50) % 100 for i in range(100))

@pytest.mark.parametrize('kind', ['pool', 'query'])
def test_evidence_over_the_picture(kind, toy, tmp_path):
    "The map changes with the tag and the picture, stays under the sliders, and an unknown tag is said."
    table, tagger, scored = toy
    if kind != 'pool':
        toy_tagger(tmp_path, head=kind, steps=1)
        tagger, scored = Tagger.load(tmp_path/'model', device='cpu'), None
    d, (a, b) = Predictions(tagger, scored or score_all(tagger, table.select(slice(0, 4))), side=48), tagger.vocab.names[:2]
    assert d.heat_box.layout.display == 'none' and d.heat.value == b''
    d.where.value = a
    first = d.heat.value
    assert d.heat_box.layout.display is None and bytes(first).startswith(b'\x89PNG')
    assert ('shares of the logit' in d.found.value) == tagger.head.exact_evidence
    d.scale.value = 2
    assert d.heat.value == first
    d.next.click()
    assert d.heat.value != first
    d.prev.click(); d.where.value = b
    assert d.heat.value != first
    d.where.value = '<b>'
    assert d.heat.value == b'' and 'role="alert"' in d.found.value and '<b>' not in d.found.value.split('role="alert">')[1][:-4]

def test_moved_thresholds_are_those_of_tag_and_eval(toy, tmp_path):
    "Moved in two dashboards, written to one file: tagging and measuring with it find what the dashboards show."
    import json, pandas as pd
    from vaetag_nb import dashboards
    import vaetag_nb.cli  # noqa: F401 (registers all verbs)
    from vaetag_nb.verbs.base import shell
    table, tagger, scored = toy
    own, names = tmp_path/'own.csv', tagger.vocab.names
    b, q = dashboards.tag_browser(scored, most=4, thresholds=own), dashboards.quality(scored, thresholds=own)
    b.threshold.value = round(float(np.sort(scored.scores[:, b.tag.value])[-3]), 2)
    b.mine.save.click()
    q.tag.value = names[b.list.among[-1]]; q.rule.value = 'level'; q.level.value = .17; q.mine.save.click()
    assert own.read_text().count('\n') == 3 and '2 moved' in dashboards.tag_browser(scored, most=4, thresholds=own).mine.said.value
    limits = np.array(tagger.thresholds()); limits[b.tag.value] = b.threshold.value; limits[b.list.among[-1]] = .17
    assert (tagger.thresholds(own) == limits).all()
    status, out, err = shell('tag', table.paths[0], '--model', str(tagger.folder), '--threshold', str(own), '--out', str(tmp_path/'t.json'))
    assert status == 0, err
    said = json.loads((tmp_path/'t.json').read_text())
    assert said['options']['threshold'] == pytest.approx({names[b.tag.value]: b.threshold.value, names[b.list.among[-1]]: .17})
    assert {t['tag'] for t in said['images'][0]['tags']} == {names[k] for k in b.list.among if scored.scores[0, k] >= limits[k]}
    assert shell('eval', 'tagger', '--model', str(tagger.folder), '--data', str(tagger.folder.parent/'scenes/data.json'), '--thresholds', str(own), '--out', str(tmp_path/'e'))[0] == 0
    measured = pd.read_csv(tmp_path/'e/evaluation_results.csv').set_index('class_name')
    k = b.tag.value; assert measured.precision[names[k]] == pytest.approx(b.figures[0, k], abs=1e-5) and measured.threshold[names[k]] == pytest.approx(limits[k])
    own.write_text(f'name,threshold\n{names[3]}x,.5\n')
    status, out, err = shell('tag', table.paths[0], '--model', str(tagger.folder), '--threshold', str(own))
    assert status == 1 and f'own.csv: line 2: the model has no tag {names[3] + "x"!r}. Did you mean {names[3]!r}' in err and len(err.strip().splitlines()) == 1
