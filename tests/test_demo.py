"What is promised of `vaetag demo`: offline, from nothing, to a tagger that is right"
import pytest
from vaetag_nb.demo import run_demo

@pytest.mark.slow
def test_the_demo_reaches_a_micro_f1_of_nine_tenths(tmp_path, monkeypatch):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    figures = run_demo(tmp_path/'demo')['figures']['test']
    assert figures['decoder']['f1_micro'] >= .9 and figures['decoder']['mAP'] > max(f['mAP'] for n, f in figures.items() if n != 'decoder')
