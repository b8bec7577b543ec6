"""What each control of each dashboard does: `(label, value, what changes, what is then said)`, see `Board.go_through`."""

PREDICTIONS = ['predictions',
    ('next', None, 'note bars +pictures', ' 2 of 24'),
    ('previous', None, 'note bars +pictures', ' 1 of 24'),
    ('picture', '7', 'note bars +pictures', ' 7 of 24'),
    ('with tag', 'red', 'counts', 'red: '),
    ('where it is', 'true', 'note'),
    ('where it is', 'all', 'note'),
    ('with tag', '', 'counts'),
    ('factor', 12, 'note counts bars', 'factor 1.60'),
    ('evidence for', 'red', 'pictures found', 'evidence for red'),
    ('evidence for', 'blue', 'pictures[2] found =pictures[0]', 'evidence for blue'),
    ('evidence for', '', 'pictures'),
    ('thresholds', 'one for all tags', 'note counts bars', 'threshold 0.50'),
    ('threshold', -20, 'note counts bars', 'threshold 0.30')]

QUALITY = ['quality',
    ('category', 'general', 'note', 'general tags'),
    ('or one tag', 'red', 'note tables charts', 'red · 1 tag'),
    ('factor', 6, 'note tables', '1 threshold moved'),
    ('threshold', 'the same for each', 'note tables'),
    ('threshold', 9, 'note tables'),
    ('all as fitted', None, 'note tables', '0 thresholds moved'),
    ('or one tag', '', 'note tables charts')]

LIST = [
    ('of', 'general', '=note'),
    ('sorted by', 'name', 'list'),
    ('least first', None, 'list'),
    ('search', 'red', 'list note', '4 of 50 tags')]

USES = dict(
    tags=['tags', *LIST, 
        ('search', '', 'list'),
        ('list', dict(index=2), 'note thumbs'),
        ('page', '2', 'note thumbs', 'page 2 of')],
    predictions=[*PREDICTIONS, ('tag by tag', None, 'list'), ('all together', None, 'tables'), *QUALITY],
    monitor=['training',
        ('mean over', 20, 'charts'),
        ('figures', ['loss', 'lr'], 'charts tables'),
        ('runs', ['second'], 'charts tables note'),
        ('by', 'epoch', 'charts'),
        ('logarithmic', None, 'charts'),
        ('seconds', '0.2'),
        ('live', None), ('refresh', None, 'charts tables'), ('live', None, 'charts tables'),
        ('pictures of', 'second: grid', 'pictures'),
        ('at', -1, 'pictures'),
        ('over time', None, 'pictures')],
    aligner=['aligner',
        ('row', '7', 'note bars', 'emb.npz:7'),
        ('length, times', 8, 'note bars =pictures')],
)
