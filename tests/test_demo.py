"What is promised of `vaetag demo`: offline, from nothing, to a tagger that is right"
import pytest
from vaetag_nb.data.synth import make_scenes
from vaetag_nb.demo import IMAGES, demo_config, run_demo
from vaetag_nb.trainers.tagger import train_decoder

@pytest.mark.slow
def test_the_demo_reaches_a_micro_f1_of_nine_tenths(tmp_path, monkeypatch):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    figures = run_demo(tmp_path/'demo')['figures']['test']
    assert figures['decoder']['f1_micro'] >= .9 and figures['decoder']['mAP'] > max(f['mAP'] for n, f in figures.items() if n != 'decoder')

@pytest.mark.slow
def test_pool_tiny_is_not_behind_the_attention_head_at_equal_epochs(tmp_path):
    "Acceptance (m), with the commands of the page on losses and heads"
    make_scenes(tmp_path/'scenes', IMAGES, 0)
    heads = dict(pool=dict(d=192, depth=4, heads=3, stem=0, drop_path=.1), attention=dict(head='attention'))
    mAP = {}
    for name, model in heads.items():
        cfg = demo_config(tmp_path/'scenes', tmp_path/name, epochs=2, model=model, eval=dict(every=1, baselines=False), latents=dict(store=str(tmp_path/'latents')))
        mAP[name] = train_decoder(cfg).metrics['test']['decoder']['mAP']
    print(mAP)
    assert mAP['pool'] >= mAP['attention'], mAP
