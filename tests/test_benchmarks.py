"Each benchmark runs at a small size, its assertions of equal results included; what it measures is not looked at."
import json, os, subprocess, sys
from pathlib import Path
import pytest

pytestmark = pytest.mark.slow
HERE = Path(__file__).parents[1]/'benchmarks'
SMALL = dict(
    bucketing=dict(pictures=2000), cached=dict(pictures=3), dashboards=dict(pictures=3000, tags=200), cyclegan=dict(latents=64, steps=1, pixels=64), danbooru=dict(posts=3000, tags=200), diffusion=dict(steps=1, batch=4, calls=2), decode=dict(pictures=8), encoding=dict(pictures=2), frechet=dict(few=20, many=300, dim=64), loading=dict(pictures=4, batch=2, size=64), metrics={'images': 2000, 'tags': 10, 'grid-images': 500},
    mining=dict(images=2000, tags=200, loop=50), radar=dict(seconds=2.2, users=1), split={'images': 2000, 'tags': 100, 'large': 5000, 'large-tags': 200},
    onnx_tagging=dict(pictures=3), store=dict(samples=130), tagging=dict(pictures=3, heavy=1))

def test_every_script_is_tried():
    assert {p.stem for p in HERE.glob('*.py')} == {*SMALL, 'common', 'real_images', 'ablation', 'end_to_end', 'timm_evidence', 'unpaired_emoji', 'diffusion_memory', 'aligner', 'dashboards_browser'}  # these train for long, or need a browser

@pytest.mark.parametrize('name', SMALL)
def test_runs(name):
    if name == 'split': pytest.importorskip('iterstrat')
    flags = [x for k, v in SMALL[name].items() for x in (f'--{k}', str(v))]
    env = os.environ | dict(OMP_NUM_THREADS='1', PYTHONPATH=os.pathsep.join([str(HERE.parent), os.environ.get('PYTHONPATH', '')]))
    out = subprocess.run([sys.executable, HERE/f'{name}.py', '--repeats', '1', '--json', *flags], env=env, capture_output=True, text=True, timeout=600)
    assert out.returncode == 0, out.stderr
    got = json.loads(out.stdout)
    assert got and all(r['ratio'] > 0 and r['name'] for r in got)
