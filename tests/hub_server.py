"A hub in a thread: as much of its interface over HTTP as `create_repo`, `create_branch`, `upload_folder`, `list_repo_files`, `get_paths_info` and `hf_hub_download` of huggingface_hub need."
import base64, hashlib, json, threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

class Hub:
    "Repositories with branches; a branch is a list of commits, each with a title, a date and all files."
    def __init__(self): self.repos, self.large, self.asked = {}, {}, []
    def create(self, repo): self.repos.setdefault(repo, dict(main=[('initial commit', '2026-01-01T00:00:00.000Z', {})]))
    def commit(self, repo, rev, title, change):
        commits = self.repos[repo][rev]
        commits.append((title, f'2026-01-{len(commits) + 1:02}T00:00:00.000Z', change(dict(commits[-1][2]))))
    def files(self, repo, rev='main'): return self.repos[repo][rev][-1][2]
    def since(self, repo, rev, path): # title, date of the last commit that changed a file or folder
        at = lambda files: {p: b for p, b in files.items() if p == path or p.startswith(f'{path}/')}
        commits = self.repos[repo][rev]
        i = next(i for i in reversed(range(len(commits))) if i == 0 or at(commits[i][2]) != at(commits[i-1][2]))
        return dict(id=sha(i), title=commits[i][0], date=commits[i][1])

def sha(x): return hashlib.sha1(str(x).encode()).hexdigest()
def about(path, data, last=None): return dict(type='file', path=path, size=len(data), oid=sha(data)) | (dict(lastCommit=last) if last else {})

class Handler(BaseHTTPRequestHandler):
    def log_message(self, *a): pass
    def say(self, x=None, status=200, **headers):
        data = x if isinstance(x, bytes) else json.dumps(x).encode()
        self.send_response(status)
        for k, v in dict({'Content-Length': len(data)}, **{k.replace('_', '-'): v for k, v in headers.items()}).items(): self.send_header(k, str(v))
        self.end_headers()
        if self.command != 'HEAD': self.wfile.write(data)

    def answer(self):
        hub, path = self.server.hub, unquote(urlparse(self.path).path)
        body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        if self.headers.get('Transfer-Encoding') == 'chunked':
            body = b''
            while n := int(self.rfile.readline(), 16): body += self.rfile.read(n); self.rfile.readline()
            self.rfile.readline()
        hub.asked.append(f'{self.command} {path}')
        parts = path.strip('/').split('/')
        if parts[0] == 'large': hub.large[parts[1]] = body; return self.say({})
        if self.headers.get('Authorization') != 'Bearer secret': return self.say(dict(error='Invalid user token.'), 401)
        if path == '/api/repos/create':
            d = json.loads(body); repo = f"{d.get('organization') or 'me'}/{d['name']}"
            if repo.startswith('them/'): return self.say(dict(error='You have no right to create a model under "them".'), 403, X_Error_Message='You have no right to create a model under "them".')
            there = repo in hub.repos; hub.create(repo)
            return self.say(dict(url=f'/{repo}', name=repo), 409 if there else 200)
        if path.endswith('.git/info/lfs/objects/batch'):
            o = json.loads(body)['objects']
            return self.say(dict(transfer='basic', objects=[dict(oid=x['oid'], size=x['size'], actions=dict(upload=dict(href=f"http://{self.headers['Host']}/large/{x['oid']}"))) for x in o]))
        if path == '/api/validate-yaml': return self.say(dict(errors=[], warnings=[]))
        if parts[0] == 'api':
            repo, what, rev = '/'.join(parts[2:4]), parts[4] if len(parts) > 4 else 'info', '/'.join(parts[5:6]) or 'main'
            if repo not in hub.repos: return self.say(dict(error='Repository not found'), 404, X_Error_Code='RepoNotFound')
            if what == 'branch': hub.repos[repo].setdefault(rev, [hub.repos[repo]['main'][0]]); return self.say({})
            if rev not in hub.repos[repo]: return self.say(dict(error=f'Invalid rev id: {rev}'), 404, X_Error_Code='RevisionNotFound')
            files = hub.files(repo, rev)
            if what == 'preupload': return self.say(dict(files=[dict(path=f['path'], uploadMode='lfs' if f['path'].endswith(('.onnx', '.safetensors', '.npz')) else 'regular', shouldIgnore=False, oid=None) for f in json.loads(body)['files']]))
            if what == 'commit':
                rows = [json.loads(r) for r in body.splitlines() if r]
                def change(files):
                    for r in rows:
                        v = r['value']
                        if r['key'] == 'file': files[v['path']] = base64.b64decode(v['content'])
                        if r['key'] == 'lfsFile': files[v['path']] = hub.large[v['oid']]
                        if r['key'] == 'deletedFile': files.pop(v['path'])
                    return files
                hub.commit(repo, rev, next(r['value']['summary'] for r in rows if r['key'] == 'header'), change)
                return self.say(dict(success=True, commitOid=sha(len(hub.repos[repo][rev])), commitUrl=f"http://{self.headers['Host']}/{repo}/commit/{sha(len(hub.repos[repo][rev]))}", hookOutput=''))
            if what == 'tree': return self.say([about(p, b) for p, b in files.items()])
            if what == 'paths-info':
                asked = json.loads(body)['paths'] if body.startswith(b'{') else [unquote(x.partition('=')[2]) for x in body.decode().split('&') if x.startswith('paths')]
                return self.say([about(p, files[p], hub.since(repo, rev, p)) if p in files else dict(type='directory', path=p, oid=sha(p), lastCommit=hub.since(repo, rev, p)) for p in asked if p in files or any(f.startswith(f'{p}/') for f in files)])
            if what in ('info', 'revision'): return self.say(dict(id=repo, sha=sha(len(hub.repos[repo][rev])), siblings=[dict(rfilename=p) for p in files], private=False, tags=[]))
        if len(parts) > 4 and parts[2] == 'resolve':
            repo, rev, file = '/'.join(parts[:2]), parts[3], '/'.join(parts[4:])
            data = hub.files(repo, rev).get(file)
            if data is None: return self.say(dict(error='Entry not found'), 404, X_Error_Code='EntryNotFound')
            if (r := self.headers.get('Range')) and r.startswith('bytes='):
                a, b = r[6:].split('-')
                return self.say(data[int(a):int(b) + 1], 206, ETag=f'"{sha(data)}"', X_Repo_Commit=sha(len(hub.repos[repo][rev])))
            return self.say(data, ETag=f'"{sha(data)}"', X_Repo_Commit=sha(len(hub.repos[repo][rev])))
        self.say(dict(error=f'not known here: {self.command} {path}'), 501)

    def guarded(self):
        try: self.answer()
        except ZeroDivisionError: self.say(dict(error='the disk is full'), 507)       # what a test breaks on purpose
    do_GET = do_POST = do_PUT = do_HEAD = guarded

@contextmanager
def serving():
    "The address of a hub, and the hub."
    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.hub = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(.02,), daemon=True)
    thread.start()
    try: yield f'http://127.0.0.1:{server.server_port}', server.hub
    finally: server.shutdown(); server.server_close(); thread.join()
