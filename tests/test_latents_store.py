"The latent cache under interruption, change, many processes and damage"
import json, os, resource, shutil, signal, threading, time
from pathlib import Path
from types import SimpleNamespace
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from torch.utils.data import DataLoader
from forked import ended, forked, killed
from vaetag_nb.bucketing import Preprocess
from vaetag_nb.core.errors import UsageError, VaetagError
from vaetag_nb.core.io import read_json, read_parquet
from vaetag_nb.core.rng import np_rng
from vaetag_nb.latents import encode as enc
from vaetag_nb.latents.codec import Codec
from vaetag_nb.latents.convention import Convention
from vaetag_nb.latents.encode import dump_latents, encode_table, store_meta
from vaetag_nb.latents.shards import key_hashes, read_header, sample_ids
from vaetag_nb.latents.store import COLUMNS, LatentStore, ROW, describe, save_shard, shard_name, write_index

class Toy(torch.nn.Module):
    "A VAE of one convolution, quick to load; counts what it encodes"
    def __init__(self, seed=0):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.conv = torch.nn.Conv2d(3, 8, 8, 8)
        for p in self.conv.parameters(): p.data = torch.randn(p.shape, generator=g)*.1
        self.seen, self.nap = 0, 0.
    def encode(self, x):
        self.seen += len(x); time.sleep(self.nap*len(x))
        m, v = self.conv(x).chunk(2, 1)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=m, logvar=v))

def toy(seed=0, **kw): return Codec(Toy(seed), Convention(.5, .1), config=dict(in_channels=3, latent_channels=4, block_out_channels=[8]*4), **kw)

PRE, SIZES = Preprocess(base=32, max=64, step=16), [(32, 32), (64, 32), (32, 64), (50, 40), (33, 70)]

@pytest.fixture(scope='module')
def pics(tmp_path_factory):
    d = tmp_path_factory.mktemp('pics')
    for i in range(40):
        w, h = SIZES[i % 5]
        Image.fromarray(np_rng(0, 'pic', i).integers(0, 255, (h, w, 3), np.uint8)).save(d/f'{i:02d}.png')
    return d

def names(pics): return sorted(p.name for p in pics.glob('*.png'))
def run(pics, out, codec=None, pre=PRE, **kw): return encode_table(names(pics), names(pics), codec or toy(), out, pre, root=pics, **kw)
def content(store, keys, **kw):
    s = LatentStore(store); rows = s.row_of(keys, **kw)
    assert (rows >= 0).all()
    return [s.read([r])[0] for r in rows]
def equal(a, b, tol=0): return len(a) == len(b) and all(x.shape == y.shape and (x.float() - y.float()).abs().max() <= tol for x, y in zip(a, b))

def test_too_many_unreadable_pictures_stop_early_and_lose_nothing(pics, tmp_path):
    (tmp_path/'p').mkdir()
    for i in range(24): (tmp_path/'p'/f'{i:02d}.png').write_bytes((pics/'00.png').read_bytes()[:None if i not in (4, 7, 20) else 300])   # torn behind the header
    codec = toy()
    with pytest.raises(VaetagError, match=r'^2 of the 8 pictures looked at \(of 24\) cannot be used, more than max_bad 0.05 allows: 04.png: .*; 07.png: '):
        run(tmp_path/'p', tmp_path/'s', codec, batch_size=2, max_bad=.05)
    assert codec.vae.seen == 5 and len(LatentStore(tmp_path/'s')) == 5                    # nothing is encoded once that is certain, and the index knows what was
    r = run(tmp_path/'p', tmp_path/'s', codec, batch_size=2, max_bad=.2)
    assert (r.encoded, r.reused, sorted(r.failed)) == (16, 5, ['04.png', '07.png', '20.png']) and LatentStore(tmp_path/'s').check() == []

# --- what is written -------------------------------------------------------------------------------------------------
def test_files_are_as_the_spec_says(pics, tmp_path):
    codec = toy(); r = run(pics, tmp_path/'s', codec, shard_mib=.001)
    assert (r.encoded, r.reused, r.failed, codec.vae.seen) == (40, 0, {}, 40)
    meta = read_json(tmp_path/'s'/'meta.json')
    assert meta['format'] == 'vaetag-latents/1' and len(meta['fingerprint']) == 64 and meta['vae']['fingerprint'] == codec.fingerprint
    assert meta['vae'] | dict(fingerprint=0) == {'class': 'Toy', 'family': 'custom', 'fingerprint': 0, 'latent_channels': 4, 'raw_channels': 4, 'factor': 8}
    assert meta['convention'] == codec.convention.to_dict() and meta['dtype'] == 'fp16' and meta['preprocess'] == PRE.effective()
    df, about = read_parquet(tmp_path/'s'/'index.parquet')
    assert {*'id path shard c h w bucket_w bucket_h crop_x0 crop_y0 crop_x1 crop_y1 src_w src_h src_bytes src_mtime_ns flip'.split()} <= {*df.columns} == {*COLUMNS}
    assert sorted(df['path']) == names(pics) and about['fingerprint'] == meta['fingerprint']
    by = df.set_index('path')
    for i, n in enumerate(names(pics)):
        row, st_ = by.loc[n], (pics/n).stat()
        assert (row.src_w, row.src_h) == SIZES[i % 5] and (row.src_bytes, row.src_mtime_ns) == (st_.st_size, st_.st_mtime_ns)
        assert (row.w*8, row.h*8) == (row.bucket_w, row.bucket_h) and 0 <= row.crop_x0 < row.crop_x1 <= row.src_w
    shards = sorted(p.name for p in (tmp_path/'s').glob('*.safetensors'))
    assert len(shards) > 3 and shards[0] == 'shard-0000-00000.safetensors' and {*df['shard']} == {*shards}
    place, head = read_header(tmp_path/'s'/shards[0])
    assert all(len(k) == 16 and t is torch.float16 for k, (t, *_) in place.items()) and head['fingerprint'] == meta['fingerprint']
    order = df.sort_values(['shard', 'offset'])[['bucket_w', 'bucket_h']].drop_duplicates()
    assert len(order) == len(df[['bucket_w', 'bucket_h']].drop_duplicates())   # sorted by bucket: each appears as one run

def test_latents_are_those_of_the_codec(pics, tmp_path):
    codec = toy(); run(pics, tmp_path/'s', codec, dtype='fp32', logvar=True, flip=True)
    s = LatentStore(tmp_path/'s')
    for n in names(pics)[:5]:
        row, mirror = s.row_of([n]), s.row_of([n], flip=True)
        e = s.index.iloc[row[0]]
        x = enc.to_float(PRE.load([pics/n], (int(e.bucket_w), int(e.bucket_h))).images)
        with torch.no_grad():
            for rows, y in ((row, x), (mirror, x.flip(-1))):
                mean, var = codec.encode_raw(y)
                torch.testing.assert_close(s.read(rows), mean, atol=1e-5, rtol=0); torch.testing.assert_close(s.read_logvar(rows), var, atol=1e-5, rtol=0)
                torch.testing.assert_close(s.read_model(rows), codec.encode(y), atol=1e-5, rtol=0)

def test_second_run_encodes_nothing(pics, tmp_path):
    run(pics, tmp_path/'s'); codec = toy()
    r = run(pics, tmp_path/'s', codec)
    assert (r.encoded, r.reused, codec.vae.seen) == (0, 40, 0)

def test_a_subset_and_its_complement_share_a_store(pics, tmp_path):
    ids = names(pics); files = [pics/n for n in ids]
    encode_table(ids[:15], files[:15], toy(), tmp_path/'s', PRE); r = encode_table(ids, files, toy(), tmp_path/'s', PRE)
    assert (r.encoded, r.reused) == (25, 15)
    run(pics, tmp_path/'whole')
    assert equal(content(tmp_path/'s', ids), content(tmp_path/'whole', ids), 2e-3)

def test_nothing_to_encode(tmp_path):
    r = encode_table([], [], toy(), tmp_path/'s', PRE, sizes=([], []))
    assert (r.encoded, r.reused, r.failed) == (0, 0, {}) and len(LatentStore(tmp_path/'s')) == 0 and LatentStore(tmp_path/'s').check() == []

# --- interruption ----------------------------------------------------------------------------------------------------
def whole_samples(folder):
    n = 0
    for p in Path(folder).glob('shard-*.safetensors'): n += len(read_header(p)[0])
    return n

def test_kill_9_costs_only_the_unfinished_shard(pics, tmp_path):
    slow = toy(); slow.vae.nap = .05
    p, end = forked(lambda: run(pics, tmp_path/'s', slow, batch_size=2, shard_mib=.002) and 0), time.monotonic() + 120
    while len([*(tmp_path/'s').glob('shard-*')]) < 3:
        assert os.waitpid(p, os.WNOHANG)[0] == 0 and time.monotonic() < end, 'the encoding ended before it could be killed'
        time.sleep(.01)
    killed(p)
    done = whole_samples(tmp_path/'s')
    assert 0 < done < 40 and not (tmp_path/'s'/'index.parquet').exists()
    assert len(LatentStore(tmp_path/'s')) == done
    (tmp_path/'s'/f'.shard-0000-00077.safetensors.{p}.aa.tmp').write_bytes(b'half a shard')
    codec = toy(); r = run(pics, tmp_path/'s', codec)
    assert (r.encoded, r.reused, codec.vae.seen) == (40 - done, done, 40 - done)
    run(pics, tmp_path/'whole')
    assert equal(content(tmp_path/'s', names(pics)), content(tmp_path/'whole', names(pics)), 2e-3)
    assert LatentStore(tmp_path/'s').check() == [] and not [*(tmp_path/'s').glob('.*')]

@pytest.mark.parametrize('error', [KeyboardInterrupt, MemoryError])
def test_an_error_keeps_what_was_done(pics, tmp_path, error):
    codec = toy(); plain = codec.vae.encode
    def encode(x):
        if codec.vae.seen >= 20: raise error
        return plain(x)
    codec.vae.encode = encode
    with pytest.raises(error): run(pics, tmp_path/'s', codec, batch_size=4)
    done = whole_samples(tmp_path/'s'); assert done >= 20
    assert run(pics, tmp_path/'s').encoded == 40 - done

def test_full_disk_is_one_line_and_leaves_nothing_half_written(pics, tmp_path):
    def full():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
        try: run(pics, tmp_path/'s', shard_mib=.02)
        except VaetagError as e: (tmp_path/'said').write_text(str(e)); return e.exit_code
    assert ended(forked(full)) == 1
    said = (tmp_path/'said').read_text()
    assert 'shard-0000-00000.safetensors: cannot write: File too large' in said and '\n' not in said
    assert [p.name for p in (tmp_path/'s').iterdir()] == ['meta.json']
    assert run(pics, tmp_path/'s').encoded == 40

@pytest.mark.skipif(os.name == 'nt' or os.geteuid() == 0, reason='root may write anywhere')
def test_unwritable_output(pics, tmp_path):
    (tmp_path/'s').mkdir(mode=0o500)
    with pytest.raises(VaetagError, match='meta.json: cannot write: Permission denied'): run(pics, tmp_path/'s')

def test_output_that_is_a_file(pics, tmp_path):
    (tmp_path/'s').write_text('x')
    with pytest.raises(VaetagError, match='cannot write: '): run(pics, tmp_path/'s')
    assert (tmp_path/'s').read_text() == 'x'

# --- change ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('change, says', [
    (dict(codec=toy(1)), '(vae '), (dict(pre=Preprocess(base=32, max=64, step=32)), '(preprocess.step 16 there, 32 now'),
    (dict(pre=Preprocess(bucketing=False, resolution=32)), '(preprocess.'), (dict(pre=Preprocess(base=32, max=64, step=16, filter='bilinear')), '(preprocess.filter lanczos there, bilinear now'),
    (dict(pre=Preprocess(base=32, max=64, step=16, crop='top')), '(preprocess.crop center there, top now'), (dict(dtype='fp32'), '(dtype fp16 there, fp32 now'), (dict(logvar=True), '(logvar False there, True now')])
def test_other_settings_are_another_store(pics, tmp_path, change, says):
    run(pics, tmp_path/'s'); before = {p.name: p.read_bytes() for p in (tmp_path/'s').iterdir()}
    with pytest.raises(VaetagError) as e: run(pics, tmp_path/'s', **change)
    a, b = (store_meta(toy(), PRE)['fingerprint'], store_meta(change.get('codec', toy()), change.get('pre', PRE), change.get('dtype', 'fp16'), change.get('logvar', False))['fingerprint'])
    assert says in str(e.value) and a != b and f'fingerprints {a} and {b}' in str(e.value) and 'choose another folder' in str(e.value) and '\n' not in str(e.value)
    assert {p.name: p.read_bytes() for p in (tmp_path/'s').iterdir()} == before

def test_only_the_convention_may_differ(pics, tmp_path):
    run(pics, tmp_path/'s')
    other = Codec(Toy(), Convention(2.), config=toy().config)
    assert run(pics, tmp_path/'s', other).encoded == 0
    s = LatentStore(tmp_path/'s')
    torch.testing.assert_close(s.read_model([0], other.convention), s.read([0]).float()*2); torch.testing.assert_close(s.read_model([0]), (s.read([0]).float() - .1)*.5)

def test_precision_of_the_encoder_binds(pics, tmp_path):
    run(pics, tmp_path/'s'); c = toy(); c.vae.to(torch.bfloat16)
    half = Codec(c.vae, c.convention, config=c.config, fingerprint=toy().fingerprint)
    with pytest.raises(VaetagError, match='encode_dtype fp32 there, bf16 now'): run(pics, tmp_path/'s', half)

def test_changed_pictures_are_encoded_again(pics, tmp_path):
    d = tmp_path/'pics'; shutil.copytree(pics, d); run(d, tmp_path/'s')
    old = content(tmp_path/'s', names(d))
    Image.new('RGB', (32, 32), 'red').save(d/'00.png')
    s = (d/'01.png').stat(); os.utime(d/'01.png', ns=(s.st_atime_ns, s.st_mtime_ns + 1))
    assert [(p.kind, p.entry) for p in LatentStore(tmp_path/'s').check()] == [('stale', '00.png'), ('stale', '01.png')]
    r = run(d, tmp_path/'s'); assert (r.encoded, r.reused) == (2, 38)
    new = content(tmp_path/'s', names(d))
    assert not equal(old[:1], new[:1], .01) and equal(old[1:], new[1:], 2e-3) and LatentStore(tmp_path/'s').check() == [] and len(LatentStore(tmp_path/'s')) == 40
    (d/'02.png').unlink(); assert LatentStore(tmp_path/'s').check() == []   # the latents of pictures that are gone stay

# --- parts -----------------------------------------------------------------------------------------------------------
@settings(max_examples=8)
@given(n=st.integers(1, 7))
def test_parts_are_the_whole(pics, tmp_path_factory, n):
    d = tmp_path_factory.mktemp('parts')
    got = [run(pics, d/'s', part=(i, n)) for i in range(n)]
    assert sum(r.encoded for r in got) == 40 and not any(r.reused for r in got)
    run(pics, d/'whole')
    assert equal(content(d/'s', names(pics)), content(d/'whole', names(pics)), 2e-3)
    assert run(pics, d/'s').encoded == 0 and LatentStore(d/'s').check() == []
    assert {p.name[6:10] for p in (d/'s').glob('shard-*')} <= {f'{i:04d}' for i in range(n)}

def test_parts_at_the_same_time(pics, tmp_path):
    out, fail = tmp_path/'s', []
    def go(i):
        try: run(pics, out, part=(i, 4), shard_mib=.002, threads=1)
        except Exception as e: fail.append(e)
    ts = [threading.Thread(target=go, args=(i,)) for i in range(4)]
    [t.start() for t in ts]; [t.join() for t in ts]
    assert not fail and len(LatentStore(out)) == 40 and run(pics, out).encoded == 0 and not [*out.glob('.*')]

def test_an_index_that_is_behind_is_not_believed(pics, tmp_path):
    ids = names(pics); files = [pics/n for n in ids]; out = tmp_path/'s'
    encode_table(ids[:20], files[:20], toy(), out, PRE); old = (out/'index.parquet').read_bytes()
    encode_table(ids, files, toy(), out, PRE); (out/'index.parquet').write_bytes(old)
    assert len(LatentStore(out)) == 40
    (out/'index.parquet').unlink(); assert len(LatentStore(out)) == 40
    (out/'index.parquet').write_bytes(b'PAR1 nonsense')
    assert len(LatentStore(out)) == 40 and encode_table(ids, files, toy(), out, PRE).encoded == 0 and len(read_parquet(out/'index.parquet')[0]) == 40

# --- damage ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('cut', [0, 5, 300, -1])
def test_torn_shard_is_found_and_mended(pics, tmp_path, cut, capsys):
    run(pics, tmp_path/'s', shard_mib=.001); good = content(tmp_path/'s', names(pics))
    shard = tmp_path/'s'/shard_name(0, 1); n = len(read_header(shard)[0])
    shard.write_bytes(shard.read_bytes()[:cut])
    assert [p.kind for p in LatentStore(tmp_path/'s').check()] == ['torn'] and len(LatentStore(tmp_path/'s')) == 40 - n
    assert run(pics, tmp_path/'s').encoded == n and equal(content(tmp_path/'s', names(pics)), good, 2e-3) and LatentStore(tmp_path/'s').check() == []

def test_lost_shard_is_found_and_mended(pics, tmp_path):
    run(pics, tmp_path/'s', shard_mib=.001); n = len(read_header(tmp_path/'s'/shard_name(0, 2))[0]); (tmp_path/'s'/shard_name(0, 2)).unlink()
    assert [(p.kind, p.entry) for p in LatentStore(tmp_path/'s').check()] == [('missing', shard_name(0, 2))]
    assert run(pics, tmp_path/'s').encoded == n and LatentStore(tmp_path/'s').check() == []

def test_a_shard_of_another_store_does_not_join(pics, tmp_path):
    run(pics, tmp_path/'a'); run(pics, tmp_path/'b', toy(1))
    shutil.copy(tmp_path/'b'/shard_name(0, 0), tmp_path/'a'/shard_name(7, 0))
    s = LatentStore(tmp_path/'a')
    assert [p.kind for p in s.check()] == ['foreign'] and len(s) == 40
    fresh = toy()
    assert run(pics, tmp_path/'a', fresh).encoded == 0 and (tmp_path/'a'/shard_name(7, 0)).exists()

def test_failed_pictures_are_listed(pics, tmp_path):
    d = tmp_path/'p'; d.mkdir(); [shutil.copy(pics/n, d/n) for n in names(pics)[:3]]
    (d/'text.png').write_text('no picture'); (d/'zero.png').write_bytes(b''); (d/'cut.png').write_bytes((pics/'00.png').read_bytes()[:200])
    ids = [*names(d), 'gone.png']
    r = encode_table(ids, [d/i for i in ids], toy(), tmp_path/'s', PRE)
    assert r.encoded == 3 and sorted(r.failed) == ['cut.png', 'gone.png', 'text.png', 'zero.png'] and all(r.failed.values())
    assert len(LatentStore(tmp_path/'s')) == 3 and str(r).endswith('3 encoded, 0 reused, 4 failed')

def test_non_finite_latents_name_their_pictures(pics, tmp_path):
    codec = toy(); plain = codec.vae.encode
    def encode(x):
        out = plain(x)
        if codec.vae.seen > 8: out.latent_dist.mean[-1] = float('nan')
        return out
    codec.vae.encode = encode
    with pytest.raises(VaetagError, match=r'\d\d.png: its latent is not finite') as e: run(pics, tmp_path/'s', codec, batch_size=4)
    assert e.value.exit_code == 1 and LatentStore(tmp_path/'s').check() == [] and len(LatentStore(tmp_path/'s')) == 8

def test_numbers_beyond_fp16_are_refused(pics, tmp_path):
    codec = toy(); codec.vae.conv.weight.data.mul_(1e7); codec = Codec(codec.vae, codec.convention, config=codec.config)
    with pytest.raises(VaetagError, match='not finite'): run(pics, tmp_path/'s', codec)
    assert run(pics, tmp_path/'b', codec, dtype='bf16').encoded == 40

@pytest.mark.parametrize('kw, says, kind', [(dict(part=(3, 3)), 'part 3/3', UsageError), (dict(dtype='int8'), "dtype 'int8'", VaetagError),
    (dict(pre=Preprocess(bucketing=False, resolution=36)), '8', UsageError)])
def test_wrong_arguments_write_nothing(pics, tmp_path, kw, says, kind):
    with pytest.raises(kind, match=says): run(pics, tmp_path/'s', **kw)
    assert not (tmp_path/'s').exists()

@pytest.mark.parametrize('text, says', [('{', 'not JSON'), ('[]', 'not of the format'), ('{"format": "vaetag-latents/9"}', 'not of the format'), ('{"format": "vaetag-latents/1"}', "lacks 'fingerprint'")])
def test_broken_meta(tmp_path, text, says):
    (tmp_path/'meta.json').write_text(text)
    with pytest.raises(VaetagError, match=says): LatentStore(tmp_path)

# --- reading ---------------------------------------------------------------------------------------------------------
@settings(max_examples=25)
@given(dtype=st.sampled_from(['fp16', 'bf16', 'fp32']), sizes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.integers(1, 5)), min_size=1, max_size=4),
       logvar=st.booleans(), seed=st.integers(0, 2**20))
def test_any_shapes_come_back(tmp_path_factory, dtype, sizes, logvar, seed):
    d, g = tmp_path_factory.mktemp('st'), torch.Generator().manual_seed(seed)
    vae = dict(fingerprint='f', latent_channels=4)
    meta = describe(vae, Convention().to_dict(), {}, dtype, logvar=logvar)
    (d/'meta.json').write_text(json.dumps(meta))
    lat, var, kind = {}, {}, {'fp16': torch.float16, 'bf16': torch.bfloat16, 'fp32': torch.float32}[dtype]
    for s, (c, h, w, n) in enumerate(sizes):
        keys = [f'{s}/{i}' for i in range(n)]; ids = sample_ids(key_hashes(keys))
        new = {k: torch.randn(c, h, w, generator=g).to(kind) for k in ids}; newv = {k: torch.randn(c, h, w, generator=g).to(kind) for k in ids}
        save_shard(d, shard_name(0, s), meta['fingerprint'], new, {k: ['p']*n if k == 'path' else [0]*n for k in ROW}, s, newv if logvar else None)
        lat |= dict(zip(keys, new.values())); var |= dict(zip(keys, newv.values()))
    if seed % 2: write_index(d, meta['fingerprint'])
    store = LatentStore(d); keys = [*lat]
    rows = store.row_of(keys)
    assert sorted(rows.tolist()) == list(range(len(keys))) and store.row_of(['nowhere']).tolist() == [-1]
    for s in {tuple(x) for x in store.shapes.tolist()}:
        k = [i for i, key in enumerate(keys) if tuple(lat[key].shape) == s]
        assert torch.equal(store.read(rows[k]), torch.stack([lat[keys[i]] for i in k]))
        if logvar: assert torch.equal(store.read_logvar(rows[k]), torch.stack([var[keys[i]] for i in k]))
    assert sorted(np.concatenate([*store.runs(.0001)]).tolist()) == list(range(len(keys)))
    z = torch.cat([store.read(r).double().transpose(0, 1).flatten(1)[:1] for r in store.runs()], 1)[0]
    assert abs(store.stats()['mean'][0] - z.mean()) < 1e-4 if len({s[0] for s in sizes}) == 1 else True

@pytest.fixture(scope='module')
def filled(pics, tmp_path_factory):
    d = tmp_path_factory.mktemp('filled'); run(pics, d/'s', shard_mib=.005)
    return LatentStore(d/'s')

def one_shape(store): return np.flatnonzero((store.shapes == store.shapes[0]).all(1))

def test_many_threads_read_the_same(filled):
    rows, want = one_shape(filled), filled.read(one_shape(filled)); bad = []
    fresh = LatentStore(filled.folder)
    def go(seed):
        for k in range(100):
            i = np_rng(0, seed, k).permutation(len(rows))
            if not torch.equal(fresh.read(rows[i]), want[i]): bad.append(seed)
    ts = [threading.Thread(target=go, args=(s,)) for s in range(8)]
    [t.start() for t in ts]; [t.join() for t in ts]
    assert not bad

class Latents:
    def __init__(self, store, rows): self.store, self.rows = store, rows
    def __len__(self): return len(self.rows)
    def __getitem__(self, i): return self.store.read(self.rows[[i]])[0]

@pytest.mark.skipif(os.name == 'nt', reason='fork')
def test_forked_workers_read_the_same(filled):
    rows = one_shape(filled); want = filled.read(rows)   # opened before the fork
    got = torch.cat([*DataLoader(Latents(filled, rows), 3, num_workers=2, multiprocessing_context='fork')])
    assert torch.equal(got, want)

def test_bare_wrong_rows(filled):
    for rows, says in (([len(filled)], 'no row 40'), ([-1], 'no row -1')):
        with pytest.raises(VaetagError, match=says): filled.read(rows)
    other = int(np.flatnonzero((filled.shapes != filled.shapes[0]).any(1))[0])
    with pytest.raises(VaetagError, match='in one batch: batches are of one bucket'): filled.read([0, other])

# --- one file --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('form', ['safetensors', 'npz', 'json'])
def test_a_dump_that_fails_leaves_nothing(pics, tmp_path, form, monkeypatch):
    codec = toy(); codec.vae.conv.weight.data.fill_(float('nan'))
    with pytest.raises(VaetagError, match='not finite'): dump_latents([pics/'00.png'], codec, tmp_path/'d', PRE, form)
    assert not [*tmp_path.iterdir()]
