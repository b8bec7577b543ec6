"""Radar: what the contract measures of simulated walkers and of real recordings, across rooms and through the command."""
import json, os, signal, subprocess, sys, time, zipfile
from importlib.util import find_spec
from pathlib import Path
import numpy as np, pandas as pd, pytest
from PIL import Image
from scipy.signal import spectrogram as scipys
from vaetag_nb.core.errors import VaetagError
from vaetag_nb.data.colormap import coloured
from vaetag_nb.data.convert import GRID
from vaetag_nb.data.radar import (Radar, Recording, Spectrogram, Walker, convert_dataset, draw_recording, draw_walker, echo, ellipsoid_rcs, joints, kinematics, read_iq, save_spectrogram,
                                  simulate_dataset, spectrogram)
from vaetag_nb.data.walker import JOINTS, SEGMENTS
from vaetag_nb.eval.reference import LinearReference, gait_features
from vaetag_nb.verbs.base import run, shell
import vaetag_nb.cli  # noqa: F401 (registers the verbs)

SHARED = Path(os.environ.get('VAETAG_SHARED', Path(__file__).parents[2]/'shared/data'))
SMALL = dict(recordings=2, seconds=2.2, frames=64)
FLAGS = ['--recordings', '2', '--seconds', '2.2', '--frames', '64']

def bytes_of(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(Path(folder).rglob('*')) if p.is_file()}

@pytest.fixture(scope='module')
def walkers(tmp_path_factory):
    "A small set with previews and samples"
    out = tmp_path_factory.mktemp('radar')/'D'
    simulate_dataset(out, 3, png=True, iq=True, colormap='turbo', **SMALL)
    return out

@pytest.fixture(scope='module')
def walk(): return echo(Walker(1.8, 1.4), seconds=5)

# ---- the walker and the transform

def test_speed_is_drift_and_half_the_cycle_is_a_step(walk):
    k = kinematics(spectrogram(walk))
    np.testing.assert_allclose([k.mean_velocity, k.step_rate, k.envelope95], [1.3745, 1.870, 5.31], atol=5e-3)

@pytest.mark.parametrize('user', range(1, 9))
def test_figures_of_drawn_users_come_back(user):
    w = draw_walker(3, user)
    take = draw_recording(3, user, 0, w)
    k = kinematics(spectrogram(echo(take.walker, seconds=5, aspect_deg=take.aspect_deg, start_range_m=take.start_range_m, snr_db=take.snr_db, seed=take.seed)))
    assert abs(k.mean_velocity/take.walker.speed_mps - 1) < .12 and abs(k.step_rate*take.walker.cycle_s/2 - 1) < .03

@pytest.mark.parametrize('height, speed', [(1.7, .9), (1.6, 1.), (1.95, 1.2), (1.8, 1.7)])
def test_mean_velocity_is_that_of_the_segments_weighted_by_their_cross_sections(height, speed):
    "From the positions alone, without samples or transform; within 5 % of the walking speed"
    w, radar = Walker(height, speed), Radar()
    t = np.arange(5*640)/640
    P, at = joints(w, t), np.array([3 + 5*speed, 0, radar.height_m])
    power = moved = 0.
    for a, b, r in SEGMENTS:
        A, B = P[:, JOINTS.index(a)], P[:, JOINTS.index(b)]
        sight, axis = (A + B)/2 - at, B - A
        R, L = np.linalg.norm(sight, axis=1), np.linalg.norm(axis, axis=1)
        sigma = ellipsoid_rcs(r, r, L/2, np.arccos((axis*sight).sum(1)/L/R))
        power, moved = power + sigma.sum(), moved - (sigma*np.gradient(R, t)).sum()
    v = kinematics(spectrogram(echo(w, seconds=5))).mean_velocity
    assert abs(v - moved/power) < .025*speed and abs(v/speed - 1) < .05

def test_the_two_sides_are_half_a_cycle_apart():
    both, slow = kinematics(spectrogram(echo(Walker(1.8, 1.4), seconds=5))), 1/Walker(1.8, 1.4).cycle_s
    assert abs(both.step_rate/(2*slow) - 1) < .02         # one foot alone would peak once a cycle

def test_transform_agrees_with_scipy_where_that_can_be_made_to(walk):
    "scipy's own, with its padding, detrending and scaling switched off"
    w = .5 - .5*np.cos(2*np.pi*np.arange(160)/160)
    f, t, S = scipys(walk.iq, 2560, w, 160, 120, 256, detrend=False, return_onesided=False, scaling='spectrum', mode='complex')
    theirs = 20*np.log10(abs(np.fft.fftshift(S, 0)[::-1]))
    ours = spectrogram(walk)
    np.testing.assert_allclose(ours.db, np.clip(theirs - theirs.max(), -45, 0), atol=1e-8)
    np.testing.assert_allclose(ours.time_s, t); np.testing.assert_allclose(ours.velocity_mps, np.fft.fftshift(f)[::-1]*299792458/24e9/2)

def test_every_radar_sees_the_same_walk():
    for r in (Radar(5.8e9, 1000), Radar(10e9, 2000), Radar(77e9, 8200)):
        k = kinematics(spectrogram(echo(Walker(1.8, 1.4), r, 5)))
        assert abs(k.mean_velocity/1.4 - 1) < .07 and abs(k.step_rate/1.870 - 1) < .02, r

# ---- the set

def test_users_do_not_depend_on_how_many_there_are(walkers, tmp_path):
    simulate_dataset(tmp_path/'five', 1, png=True, iq=True, colormap='turbo', **SMALL)
    for part in ('ID_1', 'iq/ID_1'): assert bytes_of(walkers/part) == bytes_of(tmp_path/'five'/part)

@pytest.mark.slow
def test_workers_change_nothing(walkers, tmp_path):
    simulate_dataset(tmp_path/'W', 3, png=True, iq=True, colormap='turbo', workers=2, **SMALL)
    assert bytes_of(tmp_path/'W') == bytes_of(walkers)

@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_equal(walkers, tmp_path):
    out = tmp_path/'K'
    args = [sys.executable, '-m', 'vaetag_nb.cli', 'data', 'radar', '--out', str(out), '--users', '3', *FLAGS, '--png', '--iq', '--colormap', 'turbo']
    p = subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not (out/'ID_1/rec01/w01.npy').exists() and p.poll() is None and time.monotonic() < end: time.sleep(.002)
    p.send_signal(signal.SIGKILL); p.wait()
    assert run(args[3:]) == 0
    assert bytes_of(out) == bytes_of(walkers)

def test_arrays_tables_and_description_agree(walkers):
    d, m = json.loads((walkers/'dataset.json').read_text()), pd.read_csv(walkers/'manifest.csv')
    assert (d['users'], d['recordings'], d['windows']) == (3, 6, len(m)) == (3, 6, 18) and m.groupby(['user', 'recording']).size().eq(3).all()
    for f in m.file:
        a = np.load(walkers/f)
        assert a.shape == (d['array']['rows'], d['array']['frames']) and a.dtype == np.float32 and -45 <= a.min() and a.max() <= 0
    users, takes = pd.read_csv(walkers/'users.csv'), pd.read_csv(walkers/'recordings.csv')
    np.testing.assert_allclose(users.speed_mps, [draw_walker(0, u).speed_mps for u in users.user])
    np.testing.assert_allclose(takes.steps_per_min*takes.cycle_s, 120)
    assert d['fingerprint'] and not (walkers/'.unfinished.jsonl').exists()

def test_everything_says_simulated(walkers, capsys):
    for p in walkers.rglob('*'):
        if p.is_file(): assert b'measured' not in p.read_bytes().lower(), p
    for t in ('users', 'recordings', 'manifest'): assert (pd.read_csv(walkers/f'{t}.csv').source == 'simulated').all()
    assert json.loads((walkers/'dataset.json').read_text())['simulated'] is True
    assert (walkers/'README.md').read_text().startswith('SIMULATED DATA: computed by a walking model, no person was recorded.\n')
    png = Image.open(walkers/'preview/ID_2/rec01_w01.png')
    assert set(png.text) == {'Source', 'Dataset', 'User', 'Recording', 'Parameters', 'Colormap'} and (png.text['Source'], png.text['User']) == ('simulated', '2')
    assert str(np.load(walkers/'iq/ID_2/rec01.npz')['source']) == 'simulated'
    assert run(['data', 'radar', '--out', str(walkers), '--users', '3', *FLAGS, '--png', '--iq', '--colormap', 'turbo']) == 0
    assert capsys.readouterr().out == 'SIMULATED: 3 users, 6 recordings, 18 windows\n'

def test_a_preview_inverted_again_is_the_array(walkers):
    for name, most in dict(turbo=1, jet=3).items():
        a = np.load(walkers/'ID_1/rec00/w00.npy')
        path = walkers/'preview/ID_1/rec00_w00.png' if name == 'turbo' else walkers.parent/'jet.png'
        if name == 'jet': Image.fromarray(coloured(a/45 + 1, 'jet')).save(path)
        assert abs(read_iq(path, colormap=name).db - a).max() <= most*45/255 + 1e-5

def test_noise_only_windows_stay_dark():
    "The reference is the recording's strongest bin, not each window's own"
    quiet = echo(Walker(1.8, 1.4), seconds=5, snr_db=30).iq.copy()
    quiet[6400:] *= 1e-3
    db = spectrogram(Recording(quiet, 2560, 24e9)).db
    assert db[:, -100:].max() == -45

# ---- recordings

def test_samples_in_every_container_give_the_stored_arrays(walkers, tmp_path):
    import scipy.io, wave
    z = np.load(walkers/'iq/ID_1/rec00.npz'); iq = z['iq'].astype(complex)
    two = np.c_[iq.real, iq.imag]
    np.save(tmp_path/'a.npy', iq); np.save(tmp_path/'two.npy', two); np.savez(tmp_path/'a.npz', x=iq); scipy.io.savemat(tmp_path/'a.mat', dict(s=iq))
    np.savetxt(tmp_path/'a.csv', two, delimiter=',', fmt='%.9g'); two.astype(np.float32).tofile(tmp_path/'a.bin')
    want = np.load(walkers/'ID_1/rec00/w00.npy')
    how = dict(fc_hz=24e9, highpass_mps=0)
    for name in ('a.npy', 'two.npy', 'a.npz', 'a.mat', 'a.csv', 'a.bin'):
        assert abs(spectrogram(read_iq(tmp_path/name, prf_hz=2560, dtype='float32', **how)).db[:, :64] - want).max() < .01, name
    with wave.open(str(tmp_path/'a.wav'), 'wb') as f:
        f.setnchannels(2); f.setsampwidth(2); f.setframerate(2560); f.writeframes(np.round(two/abs(two).max()*32767).astype('<i2').tobytes())
    got = spectrogram(read_iq(tmp_path/'a.wav', **how)).db[:, :64]
    assert abs(got - want)[want > -40].max() < .5

def test_the_command_reads_kept_samples_back(walkers, tmp_path):
    status, out, _ = shell('data', 'radar', '--out', str(tmp_path/'R'), '--input', str(walkers/'iq'), '--highpass-mps', '0', '--grid', 'native', '--frames', '64', '--source', 'measured')
    assert (status, out) == (0, 'SIMULATED: 3 users, 6 recordings, 18 windows\n')
    for u in (1, 2, 3):
        for r in (0, 1):
            for w in range(3): assert abs(np.load(tmp_path/f'R/ID_{u}/{r}/w{w:02d}.npy') - np.load(walkers/f'ID_{u}/rec{r:02d}/w{w:02d}.npy')).max() < .01
    assert not [p for p in (tmp_path/'R').rglob('*') if p.is_file() and p.suffix != '.npy' and b'measured' in p.read_bytes().lower()]     # though the flag said so

def test_coloured_pictures_of_the_original_become_arrays(walk, tmp_path):
    "Its layout: a folder for each user, coloured pictures in it, recordings unknown"
    image = spectrogram(walk).image
    for user, at in (('ID_3', 0), ('user_01', 60), ('12', 120)):
        (tmp_path/'in'/user).mkdir(parents=True)
        for k in (1, 2, 10): Image.fromarray(coloured(image[:, at+k:at+k+100], 'jet')).save(tmp_path/f'in/{user}/{k}.png')
    status, out, _ = shell('data', 'radar', '--out', str(tmp_path/'out'), '--input', str(tmp_path/'in'), '--invert-colormap', 'auto')
    assert (status, out.splitlines()) == (0, ['UNKNOWN ORIGIN: 3 users, 3 recordings, 9 windows', 'colours: mean distance 0.00 of 255 from the colour map'])
    m = pd.read_csv(tmp_path/'out/manifest.csv')
    assert m.recording.isna().all() and sorted(set(m.user)) == [1, 3, 12]
    assert abs(np.load(tmp_path/'out/ID_1/w02.npy')/45 + 1 - image[:, 70:170]).max() <= 3/255 + 1e-6

def test_glasgow_text_by_its_preset(tmp_path):
    slow = echo(Walker(1.8, 1.4), Radar(5.8e9, 1000), 3, snr_db=20).iq
    sweeps = slow[:, None]*np.exp(2j*np.pi*12*np.arange(64)/64)
    (tmp_path/'in').mkdir()
    (tmp_path/'in/1P07A01R02.dat').write_text('5.8e9\n1\n64\n4e8\n' + '\n'.join(f'{x.real:.6g}{x.imag:+.6g}i' for x in sweeps.ravel()))
    status, out, _ = shell('data', 'radar', '--out', str(tmp_path/'G'), '--input', str(tmp_path/'in'), '--preset', 'glasgow', '--source', 'measured', '--pattern', r'(?P<activity>\d)P(?P<user>\d+)A\d+R(?P<recording>\d+)', '--where', 'activity=1')
    assert (status, out.splitlines()[0]) == (0, 'MEASURED: 1 user, 1 recording, 5 windows')
    d = json.loads((tmp_path/'G/dataset.json').read_text())
    assert (d['stft']['window'], d['stft']['hop'], d['stft']['nfft'], d['stft']['taper']) == (200, 10, 800, 'hamming_periodic') and d['request']['reading']['range_bins'] == [9, 29]
    k = kinematics(Spectrogram(np.load(tmp_path/'G/ID_7/02/w00.npy'), GRID, np.arange(128)*.01))
    assert abs(k.mean_velocity/1.4 - 1) < .1 and abs(k.step_rate/1.87 - 1) < .1

def test_real_recordings_of_another_lab(tmp_path):
    f = SHARED/'radar_parrad/parrad_set1.npz'
    if not f.exists(): pytest.skip(f'{f} is not there')
    s = read_iq(f, kind='spectrogram', key='WR14', time_axis=0)
    assert s.db.shape == (128, 6678) and s.db.mean(1).argmax() == 64 and s.velocity_mps is None and s.source == 'unknown'
    status, out, _ = shell('data', 'radar', '--out', str(tmp_path/'P'), '--input', str(f), '--kind', 'spectrogram', '--key', 'WR14', '--time-axis', '0', '--source', 'measured', '--step', '128')
    assert (status, out) == (0, 'MEASURED: 1 user, 1 recording, 52 windows\n')
    d = json.loads((tmp_path/'P/dataset.json').read_text())
    assert d['source'] == 'measured' and d['array']['velocity_mps'] is None and d['array']['rows'] == 128
    assert kinematics(s).unit == 'rows'

# ---- errors that users cause

def test_errors_are_one_line_with_the_right_status(tmp_path, monkeypatch):
    monkeypatch.setenv('VAETAG_QUIET', '1')        # no bars between the lines
    np.save(tmp_path/'one.npy', np.arange(9.)); np.save(tmp_path/'o.npy', np.array([{}], object)); np.save(tmp_path/'nan.npy', np.r_[np.ones(400), np.nan] + 0j); np.save(tmp_path/'zero.npy', np.zeros(4000, complex))
    np.save(tmp_path/'short.npy', np.ones(99, complex)); np.save(tmp_path/'map.npy', np.ones((9, 9), complex)); np.save(tmp_path/'s.npy', np.random.default_rng(0).random((9, 9)))
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)).save(tmp_path/'p.png')
    (tmp_path/'a.h5').write_bytes(b'x')
    known = ['--prf-hz', '2560', '--fc-hz', '24e9']
    for name, args, code, why in [('one.npy', known, 2, 'shape (9,): one channel'), ('o.npy', known, 1, 'Object arrays cannot be loaded'), ('nan.npy', known, 1, '1 samples are not finite, the first is number 400'),
                                  ('zero.npy', known, 1, 'silent'), ('short.npy', [*known, '--highpass-mps', '0'], 1, '99 samples, fewer than the 160'), ('map.npy', known, 2, 'shape (9, 9): if these are sweeps'),
                                  ('short.npy', ['--prf-hz', '2560'], 2, 'does not say fc_hz: give --fc-hz'), ('s.npy', [], 2, '9 frames, and a window needs 128'), ('s.npy', ['--key', 'a', '--kind', 'fmcw'], 2, 'give --prf-hz and --fc-hz and --bandwidth-hz'),
                                  ('p.png', ['--invert-colormap', 'jet'], 1, 'does not look like the colour map jet: mean distance'), ('p.png', [], 2, 'a coloured picture'),
                                  ('none.npy', [], 2, 'no such file or folder'), ('a.h5', [], 1, 'cannot read' if find_spec('h5py') else "a.h5: HDF5 needs h5py: pip install 'vaetag_nb[hdf5]'"), ('s.npy', ['--span-db', 'inf'], 2, '--span-db inf: above 0'), ('s.npy', ['--pattern', 'x(?P<user>1)'], 2, 'none of 1 files, such as s.npy')]:
        status, out, err = shell('data', 'radar', '--out', str(tmp_path/'out'), '--input', str(tmp_path/name), *args)
        assert status == code and why in err and err.count('\n') == 1 and not out, (name, err)
    assert not (tmp_path/'out').exists()

def test_hdf5(walk, tmp_path):
    h5py = pytest.importorskip('h5py')
    s = spectrogram(walk)
    def write(name, **arrays):
        with h5py.File(tmp_path/name, 'w') as f:
            for k, v in arrays.items(): f[k.replace('__', '/')] = v
    write('idrad.h5', microdoppler=s.db.T.astype(np.float32), label='walks'); write('two.h5', a__x=s.db, a__y=s.db - 1); write('text.h5', note='x'); write('iq.hdf5', samples=walk.iq); write('none.h5')
    (tmp_path/'torn.h5').write_bytes((tmp_path/'idrad.h5').read_bytes()[:9999]); (tmp_path/'a.h5').write_bytes(b'x')
    got = read_iq(tmp_path/'idrad.h5', time_axis=0, db=True, frame_s=1/64, velocity_mps=tuple(s.velocity_mps[[0, -1]]))
    np.testing.assert_allclose(got.db, s.db, atol=1e-5); assert abs(kinematics(got).mean_velocity - kinematics(s).mean_velocity) < 1e-4
    assert read_iq(tmp_path/'two.h5', key='a/y', db=True).db.max() == 0
    np.testing.assert_array_equal(read_iq(tmp_path/'iq.hdf5', kind='iq', prf_hz=2560, fc_hz=24e9, highpass_mps=0).iq, walk.iq)
    for name, why in [('two.h5', r'which array\? it holds a/x, a/y; name one'), ('text.h5', 'not of numbers'), ('none.h5', r'which array\? it holds nothing'), ('torn.h5', 'cannot read: .*truncated'), ('a.h5', 'cannot read: .*signature')]:
        with pytest.raises(VaetagError, match=why): read_iq(tmp_path/name)

def test_hdf5_without_its_reader(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'h5py', None); (tmp_path/'a.h5').write_bytes(b'x')
    with pytest.raises(VaetagError, match=r"a.h5: HDF5 needs h5py: pip install 'vaetag_nb\[hdf5\]'"): read_iq(tmp_path/'a.h5')

def test_an_archive_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path/'z.npz', 'w') as z: z.writestr('x.txt', 'hi')
    with pytest.raises(VaetagError, match='z.npz: an array of .*not of numbers'): read_iq(tmp_path/'z.npz', prf_hz=1, fc_hz=1)

def test_coherent_range_bins_of_one_object_add_up(walk, tmp_path):
    np.save(tmp_path/'s.npy', (walk.iq[:6000, None]*np.exp(2j*np.pi*12.3*np.arange(64)/64)).astype(np.complex64))
    one, sum_ = (read_iq(tmp_path/'s.npy', kind='fmcw', prf_hz=2560, fc_hz=24e9, bandwidth_hz=4e8, combine=c, range_bins=(11, 14)) for c in ('magnitude', 'coherent'))
    np.testing.assert_allclose(abs(sum_.iq), abs(one.iq).sum(0), rtol=1e-3)
    assert abs(kinematics(spectrogram(sum_)).mean_velocity/1.4 - 1) < .05

def test_another_set_is_not_replaced(walkers, tmp_path):
    save_spectrogram(tmp_path/'s.npz', spectrogram(echo(Walker(), seconds=3)))
    for f in (lambda: simulate_dataset(walkers, 4, **SMALL), lambda: convert_dataset(walkers, tmp_path/'s.npz')):
        with pytest.raises(VaetagError, match='holds another data set .* first difference: .*--overwrite replaces it'): f()
    (tmp_path/'other').mkdir(); (tmp_path/'other/dataset.json').write_text('["something else"]')
    for f in (lambda: simulate_dataset(tmp_path/'other', 4, **SMALL), lambda: convert_dataset(tmp_path/'other', tmp_path/'s.npz')):
        with pytest.raises(VaetagError, match='other: holds files that are no radar data set'): f()

# ---- how hard the walkers are to tell apart

def separability(D):
    "Accuracy of the linear reference: trained on recordings 0 to 6 and tested on 7 to 9; with a random split of windows; nearest class mean of 16x16 pixels"
    m = pd.read_csv(D/'manifest.csv'); y, by = m.user.to_numpy(), (m.recording < 7).to_numpy()
    arrays = [np.load(D/f) for f in m.file]
    X = np.concatenate([gait_features(np.stack(arrays[i:i+100]), GRID) for i in range(0, len(arrays), 100)])
    score = lambda on: float((LinearReference.fit(X[on], y[on]).predict(X[~on]) == y[~on]).mean())
    pixels = np.stack([a.reshape(16, 16, 16, 8).mean((1, 3)).ravel() for a in arrays])
    means = np.stack([pixels[by & (y == u)].mean(0) for u in np.unique(y)])
    nearest = np.unique(y)[((pixels[~by][:, None] - means)**2).sum(2).argmin(1)]
    return score(by), score(np.random.default_rng(0).random(len(m)) < .7), float((nearest == y[~by]).mean())

@pytest.mark.slow
def test_users_are_separable_but_not_trivially(tmp_path):
    by, windows, pixels = zip(*[separability(Path(simulate_dataset(tmp_path/str(seed), seed=seed)['out'])) for seed in range(4)])
    hard = separability(Path(simulate_dataset(tmp_path/'hard', spread=.5)['out']))
    print(f'by recording {np.round(by, 3)}, by window {np.round(windows, 3)}, pixels {np.round(pixels, 3)}, spread .5 {np.round(hard, 3)} (chance .032)')
    assert .77 < min(by) and max(by) < .90 and min(windows) > .95 and max(pixels) < .16 and .38 < hard[0] < .56
