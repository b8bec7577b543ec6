"Publishing: what goes out of a run, in which dialects, where clients look for it, and that nothing else moves"
import json, os, re, shutil, signal, subprocess, sys
import pytest, torch, yaml
from forked import ended, forked
from hub_server import serving
from hypothesis import given, strategies as st
from vaetag_nb.core.io import read_json, write_json
from vaetag_nb.core.rng import seeded
from vaetag_nb.data.tags import Vocab
from vaetag_nb.models.folder import FORMAT
from vaetag_nb.models.timm_folder import save_timm
from vaetag_nb.models.timm_tagger import create, square_of
from vaetag_nb.publish import hub, install
from vaetag_nb.publish.formats import Options
from vaetag_nb.publish.licence import Said
from vaetag_nb.publish.list import macs_of, table_text, with_table
import vaetag_nb.cli  # noqa: F401 (registers all verbs)
from vaetag_nb.verbs.base import shell

WD = ['README.md', 'config.json', 'inv.npz', 'model.onnx', 'model.safetensors', 'selected_tags.csv', 'vaetag.json']
TIMM = ['README.md', 'categories.json', 'config.json', 'metrics.json', 'model.onnx', 'model.safetensors', 'preprocess.json', 'selected_tags.csv', 'thresholds.csv', 'vaetag.json']

def publish(*args): return shell('publish', *map(str, args))

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A run of a timm tagger, with all that must not leave it"
    d = tmp_path_factory.mktemp('publish')/'first'
    with seeded(0, 'net'): net = create('test_resnet', 4, 32)
    save_timm(d/'best', net, Vocab(['safe', '1girl', 'miku', 'vocaloid'], [9, 0, 4, 3], [9, 8, 7, 6]), square_of(net, 32), dict(global_threshold=.5, per_class_thresholds={}),
              dict(val=dict(mAP=.5125)), train=dict(images=32, data=str(d/'pictures')))
    for f in ('config.yaml', 'log.jsonl', 'split.json', 'checkpoints/step_1/optimizer.safetensors', 'samples/person.png', 'best/split.json', 'best/picture.png', 'best/model.pt'):
        (d/f).parent.mkdir(parents=True, exist_ok=True); (d/f).write_text(f'{d}')
    return d

@pytest.fixture(scope='module')
def exported(run):
    "wd and timm of the run, by `publish --local`, which is what `publish` sends"
    home = run.parent/'hf'
    status, out, err = publish(run, '--repo', 'me/x', '--format', 'timm,wd', '--size', 64, '--licence', 'mit', '--local', '--home', home, '--json')
    assert status == 0, err
    return [r['folder'] for r in json.loads(out)['installed']]

@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr('socket.socket.connect', lambda *a: pytest.fail('the network was asked'))

def test_two_dialects_in_two_repositories(exported, run):
    assert [sorted(os.listdir(f)) for f in exported] == [TIMM, WD]
    assert ['models--me--x/' in exported[0], 'models--me--x-wd/' in exported[1]] == [True]*2
    for f in exported:
        assert re.search(r'snapshots/[0-9a-f]{40}$', f) and install.content_revision(f) == f[-40:]
        card = open(f'{f}/README.md', encoding='utf-8').read()
        assert yaml.safe_load(card.split('---')[1])['license'] == 'mit' and str(run) not in card

def test_a_dry_run_asks_no_network_and_writes_nothing(exported, run, no_network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = publish(exported[1], '--repo', 'me/x', '--name', 'sub', '--dry-run', '--json')
    r = json.loads(out)
    assert status == 0 and [f['path'] for f in r['files']] == [f'sub/{f}' for f in WD] and all(f['size'] and len(f['sha256']) == 64 for f in r['files']) and not list(tmp_path.iterdir())
    status, out, err = publish(run, '--repo', 'me/x', '--licence', 'mit', '--dry-run', '--json')
    files = [f['path'] for f in json.loads(out)['files']]
    assert files == ['README.md', 'config.json', 'model.json', 'model.safetensors', 'optimal_thresholds.json', 'selected_tags.csv'] and 'stays here: model.pt, picture.png, split.json' in err

@pytest.mark.parametrize('client', ['timm', 'kohya', 'comfyui', 'imgutils-wd14', 'hf'])
def test_installed_twice_and_taken_away(exported, client, tmp_path):
    (tmp_path/'theirs').mkdir(); (tmp_path/'theirs/model.onnx').write_text('theirs')
    args = exported[1], '--repo', 'me/x', '--local', '--client', client, '--home', tmp_path
    status, out, err = publish(*args)
    assert status == 0 and 'installed' in out, err
    first = {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}
    assert not any(p.is_symlink() for p in tmp_path.rglob('*')) and 'already there' in publish(*args)[1]
    assert first == {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}
    assert publish(*args, '--remove')[0] == 0 and sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob('*')) == ['theirs', 'theirs/model.onnx']

@pytest.mark.parametrize('at', ['selected_tags.csv', 'refs/main'])
@pytest.mark.parametrize('before', [False, True])
def test_killed_while_installing(exported, tmp_path, monkeypatch, at, before):
    home, ref = tmp_path/'hf', tmp_path/'hf/hub/models--me--x/refs/main'
    if before: old = install.content_revision(hub.install_local(exported[0], 'me/x', home=home)['folder'])
    def job():
        own = install._write
        def write(book, path, *a):
            if path.endswith(at): os.kill(os.getpid(), signal.SIGKILL)
            own(book, path, *a)
        monkeypatch.setattr(install, '_write', write)
        hub.install_local(exported[1], 'me/x', home=home)
    assert ended(forked(job)) == -signal.SIGKILL
    assert (ref.read_text() == old) if before else not ref.exists()      # no client sees half of it
    assert hub.install_local(exported[1], 'me/x', home=home)['installed'] and ref.read_text() == install.content_revision(exported[1])
    assert [p.name for p in ref.parent.parent.joinpath('snapshots').iterdir()] == [ref.read_text()]
    install.remove_local('me/x', home=home)
    assert not home.exists()

def test_what_is_wrong_is_said_before_anything_is_exported(run, tmp_path, monkeypatch):
    monkeypatch.setattr('huggingface_hub.get_token', lambda: None)
    monkeypatch.setattr('vaetag_nb.publish.export.export_pixels', lambda *a, **k: pytest.fail('was exported'))
    for args, status, why in ((['--repo', 'me'], 1, 'owner/name'), (['--repo', 'me/x', '--licence', 'mit'], 1, 'no token'), (['--repo', 'me/x', '--dry-run'], 1, '--licence'),
                              (['--repo', 'me/x,me/x'], 2, 'have a model.onnx each'), (['--repo', 'me/x', '--local', '--client', 'kohya'], 2, '--home DIR')):
        got, out, err = publish(run, '--format', 'timm,wd', *args)
        assert (got, out, err.count('\n')) == (status, '', 1) and why in err, err

def test_a_freer_licence_needs_a_reason_that_the_card_quotes(run, tmp_path):
    meta = read_json(run/'best/model.json')
    strict = tmp_path/'strict'
    for f in (run/'best').iterdir():
        if f.suffix in ('.json', '.safetensors', '.csv', '.md'): strict.mkdir(exist_ok=True); (strict/f.name).write_bytes(f.read_bytes())
    write_json(strict/'model.json', meta | dict(base=dict(name='x/y', source=None, sha256=None, licence='cc-by-nc-4.0')))
    assert publish(strict, '--repo', 'me/x', '--licence', 'mit', '--dry-run')[0] == 1
    r = hub.install_local(strict, 'me/x', home=tmp_path/'hf', o=Options(said=Said('Ours', licence='mit', reason='bought')))
    card = open(f"{r['folder']}/README.md", encoding='utf-8').read()
    assert '"bought"' in card and 'license: mit' in card and '# Ours' in card and 'cc-by-nc-4.0' in card
    assert str(run) not in (card + open(f"{r['folder']}/model.json").read())

# --- the hub, over HTTP

@pytest.fixture
def online(tmp_path, monkeypatch):
    "A hub in a thread, asked by huggingface_hub itself"
    from huggingface_hub import HfApi, constants
    for k, v in dict(HF_HUB_DISABLE_XET=True, HF_HUB_CACHE=str(tmp_path/'cache'), HF_HUB_OFFLINE=False).items(): monkeypatch.setattr(constants, k, v)
    with serving() as (address, there):
        monkeypatch.setattr(hub, 'hub_api', lambda repo='', write=True: HfApi(endpoint=address, token='secret'))
        monkeypatch.setattr('vaetag_nb.publish.list.hub_api', hub.hub_api)
        yield there

def titles(there, repo, rev='main'): return [c[0] for c in there.repos[repo][rev][1:]]

def test_the_whole_way(online, exported, run, tmp_path):
    status, out, err = publish(exported[1], '--repo', 'me/x', '--private', '--json')
    assert status == 0 and json.loads(out)['url'].startswith('http'), err
    assert titles(online, 'me/x') == ['Publish x'] and sorted(online.files('me/x')) == WD
    assert online.files('me/x')['model.onnx'] == open(f'{exported[1]}/model.onnx', 'rb').read()
    assert publish(exported[1], '--repo', 'me/x', '--name', 'sub', '--revision', 'trial')[0] == 0 and sorted(online.files('me/x', 'trial')) == [f'sub/{f}' for f in WD]
    status, out, err = publish(exported[0], '--repo', 'me/x')
    assert (status, out) == (2, '') and 'me/x: wd and timm have a model.onnx each' in err and len(titles(online, 'me/x')) == 1
    shutil.copytree(exported[1], tmp_path/'bare'); (tmp_path/'bare/inv.npz').unlink(); (tmp_path/'bare/vaetag.json').unlink()
    assert publish(tmp_path/'bare', '--repo', 'me/x')[0] == 0 and 'inv.npz' not in online.files('me/x') and len(titles(online, 'me/x')) == 2
    status, out, err = publish(run, '--repo', 'them/x', '--licence', 'mit')
    assert (status, out) == (1, '') and 'You have no right to create a model under "them"' in err
    assert not any(str(run).encode() in b for r in online.repos for b in online.files(r).values())

def test_a_table_of_what_is_published(online, exported, tmp_path):
    for n in ('a', 'b'):
        d = tmp_path/f'SwinV2_v3_{n}'
        write_json(d/'model.json', dict(format=FORMAT, kind='aligner', licence='mit', options=dict(suffix_model_name='SwinV2_v3', n=16), profile=dict(flops=1e6, params=2e6)))
        write_json(d/'metrics.json', dict(emb_norms=.123456, loss=.0123456, pred_mse=1.23456e-6, emb_cos=1.)); (d/'model.onnx').write_text(n)
        assert publish(d, '--repo', 'me/many')[0] == 0
    assert publish(exported[0], '--repo', 'me/many', '--name', 'tagger')[0] == 0
    assert shell('list', '--repo', 'me/many', '--dry-run')[1].count('would change') == 1 and len(titles(online, 'me/many')) == 3
    status, out, err = shell('list', '--repo', 'me/many')
    rows = [l.split(' | ') for l in out.splitlines() if l.startswith('| ')]
    assert [r[0] for r in rows] == ['| Name', '| SwinV2_v3_b', '| SwinV2_v3_a', '| Name', '| tagger'] and rows[1][4:] == ['0.001000G', '2.00M', '1', '0.1235', '0.01235', '1.235e-06 |']
    assert rows[4][1:5] == ['timm', 'test_resnet', '32x32', '0.37M'] and out.strip().split('\n\nREADME')[0] + '\n' == online.files('me/many')['README.md'].decode()
    asked = len(online.asked)
    assert shell('list', '--repo', 'me/many')[0] == 0 and titles(online, 'me/many')[3:] == ['Update the table of models'] and not any('commit' in a for a in online.asked[asked:])
    assert shell('list', '--repo', 'me/none')[0] == 1

def test_an_upload_that_fails(online, exported, tmp_path, monkeypatch):
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path/'t')); (tmp_path/'t').mkdir()
    monkeypatch.setattr(online, 'commit', lambda *a: 1/0)
    status, out, err = publish(exported[1], '--repo', 'me/y')
    assert (status, out) == (1, '') and err.splitlines()[-1].startswith('vaetag: me/y: the hub says: ') and not list((tmp_path/'t').iterdir())

def test_without_network_the_way_out_is_named(run, monkeypatch):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    for args in (['publish', run, '--licence', 'mit'], ['list'], ['list', '--dry-run']):
        status, out, err = shell(*map(str, args), '--repo', 'me/x')
        assert (status, out) == (1, '') and err.startswith('vaetag: me/x: HF_HUB_OFFLINE is set') and '--local' in err and err.count('\n') == 1

def test_a_licence_that_was_said_for_an_aligner_stays(tmp_path, monkeypatch):
    from vaetag_nb.models.aligner import make_aligner
    from vaetag_nb.models.aligner_folder import Aligner, save_aligner
    from vaetag_nb.models.linear_head import LinearHead, save_head
    run, out = tmp_path/'SwinV2_v3_a', tmp_path/'out/SwinV2_v3_a'
    save_aligner(run/'best', Aligner(make_aligner('posnum', 8), 'posnum', 8, {}, 'SwinV2_v3'))
    save_head(tmp_path/'inv.npz', LinearHead(torch.ones(8, 2), torch.zeros(2)))
    monkeypatch.setattr('vaetag_nb.publish.aligners.graphs_of', lambda net, head: {})      # the graphs have tests of their own
    assert publish(run, '--repo', 'me/x', '--dry-run')[0] == 1
    assert shell('export', str(run), '--format', 'aligner', '--out', str(out), '--head', str(tmp_path/'inv.npz'), '--licence', 'apache-2.0')[0] == 0
    (out/'model.onnx').touch()
    status, said, err = publish(out, '--repo', 'me/x', '--dry-run', '--json')
    assert status == 0 and json.loads(said)['licence'] == 'apache-2.0' and json.loads(said)['name'] == 'SwinV2_v3_a', err

@pytest.mark.slow
def test_the_command_itself(exported, tmp_path):
    "In a process of its own, with nothing but the environment to say where the hub is"
    with serving() as (address, there):
        own = {k: v for k, v in os.environ.items() if not k.startswith('HF_')} | dict(HF_ENDPOINT=address, HF_TOKEN='secret', HF_HOME=str(tmp_path/'hf'), HF_HUB_DISABLE_XET='1', HF_HUB_DISABLE_PROGRESS_BARS='1')
        call = lambda *args, **more: subprocess.run([sys.executable, '-m', 'vaetag_nb.cli', *map(str, args)], env=own | more, capture_output=True, text=True)
        assert call('publish', exported[1], '--repo', 'me/x').returncode == 0 and titles(there, 'me/x') == ['Publish x'] and sorted(there.files('me/x')) == WD
        assert call('list', '--repo', 'me/x').returncode == 0 and b'| x | wd | test_resnet |' in there.files('me/x')['README.md']
        done = call('publish', exported[1], '--repo', 'me/x', HF_TOKEN='stolen')
        assert done.returncode == 1 and 'me/x: the hub says: ' in done.stderr and 'token' in done.stderr and 'Traceback' not in done.stderr

# --- tables in a README

PIECES = st.lists(st.sampled_from(['| Name | Params | FLOPS |', '|:-:|---|:-:|', '| a \\| b | 1 | 2 |', '| Name | Else |', '|--|--|', '```', '~~~', '---', 'license: mit  ', 'text  ', '', '    | Name | FLOPS | Params |', '\u2028|', 'é\x0c']), max_size=14)

@given(PIECES, st.sampled_from(['\n', '\r\n']), st.booleans())
def test_the_rest_of_a_readme_stays(pieces, eol, whole):
    text, wanted = eol.join(pieces) + eol*whole, {'Name', 'FLOPS', 'Params'}
    table = table_text(('Name', 'FLOPS', 'Params'), [['mine', '1', '2']])
    new = with_table(text, table, wanted)
    assert new.replace('\r\n', '\n').count(table) == 1 and with_table(new, table, wanted) == new
    before, _, after = new.partition(table.replace('\n', eol if eol in text else '\n'))
    assert text.startswith(before.rstrip('\r\n')) and text.endswith(after.lstrip('\r\n'))

def test_odd_bytes_and_broken_models_are_survived(tmp_path):
    for name, data in dict(torn=b'{"a"', numbers=b'[1]', bytes=b'\xff\xfe').items(): (tmp_path/name).mkdir(); (tmp_path/name/'model.json').write_bytes(data)
    write_json(tmp_path/'run/best/model.json', dict(format=FORMAT, kind='cyclegan')); write_json(tmp_path/'run/checkpoints/model.json', {})
    (tmp_path/'MOAT_old').mkdir(); (tmp_path/'MOAT_old/model.pt').write_bytes(b'not opened')
    above, below = b'---\r\nlicense: mit  \r\n---\r\n\xff break  \r\n\r\n| Name | Else |\r\n|--|--|\r\n| x \\| y | 1 |\r\n\r\n', b'\r\nbelow  \r\n'
    (tmp_path/'README.md').write_bytes(above + b'| MACs | Params | Name |\r\n|--|--|--|\r\n| 1 | 2 | old |\r\n' + below)
    status, out, err = shell('list', str(tmp_path), '--write', '--json')
    assert status == 0 and {m['name']: m['kind'] for m in json.loads(out)['models']} == dict(torn=None, numbers=None, bytes=None, run='cyclegan', MOAT_old='aligner') and err.count('its cells are N/A') == 3
    readme = (tmp_path/'README.md').read_bytes()
    assert readme.startswith(above + b'| Name | Kind |') and below in readme and b'| old |' not in readme and readme.count(b'\n') == readme.count(b'\r\n')
    assert not json.loads(shell('list', str(tmp_path), '--write', '--json')[1])['changed'] and (tmp_path/'README.md').read_bytes() == readme

def test_a_broken_model_stands_where_the_others_are(tmp_path):
    for name, text in dict(a='{"kind": "aligner", "options": {"model_name": "num", "n": 8}}', torn='{"a"').items(): (tmp_path/name).mkdir(); (tmp_path/name/'model.json').write_text(text)
    assert shell('list', str(tmp_path))[1].count('| Name |') == 1
    (tmp_path/'net').mkdir(); (tmp_path/'net/model.json').write_text('{"kind": "cyclegan"}')
    tables = shell('list', str(tmp_path))[1].split('\n\n')
    assert ['| torn |' in t for t in tables] == [False, True]

def test_what_a_file_cannot_cause_is_no_cell(monkeypatch):
    def full(*_): raise MemoryError
    monkeypatch.setattr('vaetag_nb.publish.list.build', full)
    with pytest.raises(MemoryError): macs_of(dict(kind='timm_tagger', architecture=dict(name='test_vit', kwargs={}), num_classes=2, preprocess=dict(size=32)), [])
