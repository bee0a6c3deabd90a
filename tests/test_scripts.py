"""The scripts, with stubs in place of the programs that they call."""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess

import pytest
from tools.paths import ROOT

SCRIPTS = ROOT / 'scripts'
POD = ('pod', 'zone-b')
# What a shell would take apart, were it not quoted.
FLAGS = ("--gin.PAIR=('a', 'b c')", '--gin.MODEL_DIR=/mnt/$runs/x y')


@pytest.fixture
def stubs(tmp_path):
  """Programs that write down how they were called; returns the environment."""
  folder = tmp_path / 'stubs'
  folder.mkdir()
  for name in ('gcloud', 'srun', 'scontrol'):
    stub = folder / name
    stub.write_text(
      '#!/usr/bin/env bash\n'
      f'printf "%q " {name} "$@" >> "$CALLS"; echo >> "$CALLS"\n'
      f'echo "ids=${{JAX_LOCAL_DEVICE_IDS:-}}" >> "$CALLS"\n'
      f'[ {name} != srun ] || exit "${{SRUN_STATUS:-0}}"\n'
    )
    stub.chmod(0o755)
  # The SLURM script wants an environment that has been set up.
  python = tmp_path / 'checkout' / '.venv' / 'bin' / 'python'
  python.parent.mkdir(parents=True)
  python.symlink_to('/bin/true')
  (tmp_path / 'checkout' / 'calm_jax').symlink_to(ROOT / 'calm_jax')
  return {
    **{k: v for k, v in os.environ.items() if not k.startswith('SLURM')},
    'PATH': f'{folder}{os.pathsep}{os.environ["PATH"]}',
    'CALLS': str(tmp_path / 'calls'),
    'SLURM_SUBMIT_DIR': str(tmp_path / 'checkout'),
  }


def call(script, *arguments, environment):
  return subprocess.run(
    ['bash', str(SCRIPTS / script), *arguments],
    env=environment,
    capture_output=True,
    text=True,
  )


def copy_scripts(folder):
  """All but the demo's checkpoint, which is 25 MB."""
  shutil.copytree(
    SCRIPTS, folder / 'scripts', ignore=shutil.ignore_patterns('demo_t5')
  )


def calls(environment):
  """The calls of stubs, each as a list of words."""
  text = pathlib.Path(environment['CALLS']).read_text()
  return [shlex.split(line) for line in text.splitlines()]


@pytest.mark.parametrize('script', sorted(p.name for p in SCRIPTS.glob('*.sh')))
def test_bash_reads_it(script):
  checked = subprocess.run(
    ['bash', '-n', str(SCRIPTS / script)], capture_output=True, text=True
  )
  assert checked.returncode == 0, checked.stderr
  assert os.access(SCRIPTS / script, os.X_OK)


@pytest.mark.parametrize(
  'script,words',
  [
    ('demo.sh', ('--input', '--directory')),
    ('make_demo_checkpoint.sh', ('--directory', 'scripts/demo_t5')),
    ('launch_tpu_pod.sh', ('--setup', '--print', 'MODEL_DIR')),
    ('setup_environment.sh', ('EXTRAS=', 'PYTHON=', 'cuda12')),
    ('test.sh', ('--all', 'pytest', '-n 0')),
  ],
)
def test_help_teaches_and_runs_nothing(script, words, tmp_path):
  copy_scripts(tmp_path)
  done = subprocess.run(
    ['bash', f'scripts/{script}', '--help'],
    cwd=tmp_path,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0 and not done.stderr
  assert f'scripts/{script}' in done.stdout
  assert all(word in done.stdout for word in words)
  assert '#' not in done.stdout and 'set -euo' not in done.stdout
  assert os.listdir(tmp_path) == ['scripts']


@pytest.fixture
def checkout(tmp_path):
  """A folder that looks set up, its programs stubs that note their calls."""
  copy_scripts(tmp_path)
  shutil.copy(ROOT / 'setup.py', tmp_path)
  programs = tmp_path / '.venv' / 'bin'
  programs.mkdir(parents=True)
  for name in ('ruff', 'python'):
    (programs / name).write_text(
      f'#!/usr/bin/env bash\nprintf "%q " {name} "$@" >> "$CALLS"\n'
      'echo >> "$CALLS"\n[ "$*" != "${FAILS:-}" ]\n'
    )
    (programs / name).chmod(0o755)
  checksum = subprocess.run(
    'cksum < setup.py', shell=True, cwd=tmp_path, capture_output=True, text=True
  ).stdout.split()[0]
  (tmp_path / '.venv' / f'installed-{checksum}').touch()
  return tmp_path


def run_tests(checkout, *arguments, **environment):
  """Returns the exit code of test.sh and the calls of the stubs."""
  environment = {**os.environ, 'CALLS': str(checkout / 'calls'), **environment}
  environment.pop('EXTRAS', None)
  done = subprocess.run(
    ['bash', 'scripts/test.sh', *arguments],
    cwd=checkout,
    env=environment,
    capture_output=True,
  )
  return done.returncode, calls(environment)


def test_style_is_checked_before_the_tests(checkout):
  code, called = run_tests(checkout, '-k', 'a b')
  assert code == 0
  assert [words[:2] for words in called] == [
    ['ruff', 'check'],
    ['ruff', 'format'],
    ['python', '-m'],
  ]
  assert called[-1][2] == 'pytest' and called[-1][-2:] == ['-k', 'a b']
  assert called[-1][-4:-2] == ['-m', 'not slow']
  # Whoever checks must not mend: what is submitted is what was checked.
  assert '--check' in called[1]


@pytest.mark.parametrize('fails', ['check .', 'format --check .'])
def test_no_test_runs_where_a_check_fails(checkout, fails):
  code, called = run_tests(checkout, FAILS=fails)
  assert code != 0 and called[-1] == ['ruff', *fails.split()]


def test_all_takes_the_slow_tests_too(checkout):
  _, called = run_tests(checkout, '--all')
  assert 'not slow' not in called[-1] and '--all' not in called[-1]


def test_an_extra_that_does_not_exist_is_refused(checkout):
  done = subprocess.run(
    ['bash', 'scripts/setup_environment.sh'],
    cwd=checkout,
    env={**os.environ, 'EXTRAS': 'all,cuda'},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2 and "no extra 'cuda'" in done.stderr


def test_the_demo_runs_its_jobs_on_one_directory(checkout):
  environment = {**os.environ, 'CALLS': str(checkout / 'calls')}
  done = subprocess.run(
    [
      'bash',
      'scripts/demo.sh',
      '--input',
      "it's 3 pm",
      '--directory',
      'd',
    ],
    cwd=checkout,
    env=environment,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  called = calls(environment)
  jobs = [words[2].removeprefix('calm_jax.cli.') for words in called]
  assert jobs == 'convert train tune tune evaluate generate generate'.split()
  assert all('--gin.MODEL_DIR=d' in words for words in called[1:])
  assert '--target=d/t5' in called[0] and '--gin.CHECKPOINT=d/t5' in called[1]
  assert '--gin.OUTPUT_DIR=d/tuned_8' in called[3]
  for words in called[5:]:
    assert "--gin.INPUTS=it's 3 pm" in words
  # The names of a shell's arrays and quotes are none of gin's.
  files = [w for words in called for w in words if w.startswith('--gin_file=')]
  for file in files:
    assert (ROOT / 'gin_configs' / file.partition('=')[2]).is_file(), file


def test_the_demo_starts_from_what_its_model_file_says():
  gin = pytest.importorskip('gin')
  pytest.importorskip('seqio', reason='the gin files name seqio Tasks')
  from calm_jax import runs
  from calm_jax.cli import gin_runner

  folder = SCRIPTS / 'demo_t5'
  loaded = runs.load(folder, folder / 'spiece.model', extra_ids=0)
  gin_runner.parse(['models/demo.gin'], ['VOCAB_SIZE = 512'])
  config = gin.query_parameter('%CONFIG').scoped_configurable_fn()
  gin.clear_config()
  assert loaded.config == config
  assert loaded.tokenizer.vocab_size <= config.vocab_size
  size = sum(file.stat().st_size for file in folder.iterdir())
  assert size < 25e6, 'what a clone takes'


def test_commits_are_checked_as_submissions_are():
  yaml = pytest.importorskip('yaml')
  text = (ROOT / '.pre-commit-config.yaml').read_text()
  (repository,) = yaml.safe_load(text)['repos']
  assert repository['repo'] == 'local'
  hooks = {hook['id']: hook for hook in repository['hooks']}
  assert all(hook['language'] == 'system' for hook in hooks.values())
  lines = (SCRIPTS / 'test.sh').read_text().splitlines()
  checks = [line for line in lines if re.match(r'\.venv/bin/\w+ ', line)]
  # The types are checked by a test: test_types.py.
  assert [line.split()[:2] for line in checks] == [
    hook['entry'].split()[:2] for name, hook in hooks.items() if name != 'types'
  ]


def test_the_type_checker_looks_where_it_should():
  """Rooms that move take their place in the list along."""
  included = json.loads((ROOT / '.pyright.json').read_text())['include']
  assert all((ROOT / path).exists() for path in included)
  assert {
    'calm_jax/interfaces',
    *(
      f'calm_jax/{room}'
      for room in ('calibration', 'costs', 'decoding', 'exits', 'runs')
    ),
  } <= set(included)


def remote_words(call_words):
  """What the remote shell makes of --command."""
  command = next(w for w in call_words if w.startswith('--command='))
  command = command.removeprefix('--command=').partition(' exec ')[2]
  told = subprocess.run(
    ['bash', '-c', f'printf "%s\\n" {command}'], capture_output=True, text=True
  )
  return told.stdout.splitlines()


def test_a_tpu_pod_runs_the_job_on_every_worker(stubs):
  done = call('launch_tpu_pod.sh', *POD, 'train', *FLAGS, environment=stubs)
  assert done.returncode == 0, done.stderr
  (words,) = [words for words in calls(stubs) if words[0] == 'gcloud']
  assert words[:6] == ['gcloud', 'compute', 'tpus', 'tpu-vm', 'ssh', 'pod']
  assert {'--zone=zone-b', '--worker=all'} < set(words)
  assert remote_words(words) == [
    '.venv/bin/python',
    '-m',
    'calm_jax.cli.train',
    '--multiprocess',
    *FLAGS,
  ]


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / '.git').exists(), reason='copies a commit')
def test_a_tpu_pod_is_set_up_when_asked(stubs):
  done = call(
    'launch_tpu_pod.sh',
    *('--setup', '--project', 'mine', *POD, 'evaluate'),
    environment=stubs,
  )
  assert done.returncode == 0, done.stderr
  copied, installed, started = [w for w in calls(stubs) if w[0] == 'gcloud']
  assert copied[4] == 'scp' and copied[6] == 'pod:calm_jax.tar.gz'
  assert 'setup_environment.sh' in ' '.join(installed)
  assert all(
    '--project=mine' in words for words in (copied, installed, started)
  )
  assert remote_words(started)[-1] == '--multiprocess'


def test_print_runs_nothing(stubs):
  done = call(
    'launch_tpu_pod.sh',
    '--print',
    'pod',
    'z',
    'train',
    *FLAGS,
    environment=stubs,
  )
  assert done.returncode == 0
  assert done.stdout.startswith('gcloud compute tpus tpu-vm ssh pod')
  slurm = call('launch_slurm.sh', 'train', environment={**stubs, 'PRINT': '1'})
  assert slurm.stdout.startswith('srun ')
  assert not pathlib.Path(stubs['CALLS']).exists()


@pytest.mark.parametrize(
  'arguments,message',
  [
    (('pod',), 'give NAME, ZONE and JOB'),
    (('pod', 'zone', 'trian'), "there is no job 'trian'"),
    (('--speed', 'pod', 'zone', 'train'), "unknown option '--speed'"),
    (('--directory', 'a;b', 'pod', 'zone', 'train'), "--directory 'a;b'"),
    (('--project',), '--project needs a value'),
  ],
)
def test_bad_calls_of_the_tpu_script_are_named(stubs, arguments, message):
  done = call('launch_tpu_pod.sh', *arguments, environment=stubs)
  assert done.returncode == 2 and message in done.stderr
  assert not pathlib.Path(stubs['CALLS']).exists()


def test_slurm_runs_the_job_under_srun(stubs):
  done = call('launch_slurm.sh', 'train', *FLAGS, environment=stubs)
  assert done.returncode == 0, done.stderr
  words, ids = calls(stubs)
  start = words.index('.venv/bin/python')
  assert words[0] == 'srun' and '--gpu-bind=none' in words[:start]
  assert words[start + 1 :] == [
    '-m',
    'calm_jax.cli.train',
    '--multiprocess',
    *FLAGS,
  ]
  # JAX takes the GPU of the process's number by itself.
  assert ids == ['ids=']


def test_one_slurm_process_per_node_takes_all_gpus(stubs):
  node = {'SLURM_GPUS_ON_NODE': '4', 'SLURM_NTASKS_PER_NODE': '1'}
  call('launch_slurm.sh', 'train', environment={**stubs, **node})
  assert calls(stubs)[1] == ['ids=0,1,2,3']


@pytest.mark.parametrize(
  'status,restarts,again',
  [(75, 0, True), (137, 2, True), (75, 3, False), (1, 0, False)],
)
def test_slurm_queues_again_what_a_death_ended(stubs, status, restarts, again):
  done = call(
    'launch_slurm.sh',
    'train',
    environment={
      **stubs,
      'SRUN_STATUS': str(status),
      'SLURM_RESTART_COUNT': str(restarts),
      'SLURM_JOB_ID': '42',
    },
  )
  assert done.returncode == status
  assert (['scontrol', 'requeue', '42'] in calls(stubs)) == again


def test_bad_calls_of_the_slurm_script_are_named(stubs, tmp_path):
  assert 'give a JOB' in call('launch_slurm.sh', environment=stubs).stderr
  done = call('launch_slurm.sh', 'trian', environment=stubs)
  assert done.returncode == 2 and "no job 'trian'" in done.stderr
  (tmp_path / 'checkout' / '.venv' / 'bin' / 'python').unlink()
  done = call('launch_slurm.sh', 'train', environment=stubs)
  assert done.returncode == 2 and 'setup_environment.sh' in done.stderr


def test_the_jobset_says_what_jobs_want_to_know():
  yaml = pytest.importorskip('yaml')
  text = (SCRIPTS / 'kubernetes_jobset.yaml').read_text()
  jobset = yaml.safe_load(text)
  name, spec = jobset['metadata']['name'], jobset['spec']
  assert jobset['apiVersion'] == 'jobset.x-k8s.io/v1alpha2'
  assert spec['network']['enableDNSHostnames'] is True
  # A dead pod fails its job, and that restarts all of them.
  assert spec['failurePolicy']['maxRestarts'] > 0
  (replicated,) = spec['replicatedJobs']
  job = replicated['template']['spec']
  assert replicated['replicas'] == 1 and job['backoffLimit'] == 0
  assert job['completionMode'] == 'Indexed'
  pod = job['template']['spec']
  assert pod['restartPolicy'] == 'Never'
  (container,) = pod['containers']
  env = {
    entry['name']: entry['value']
    for entry in container['env']
    if 'value' in entry
  }
  (secret,) = [entry for entry in container['env'] if 'valueFrom' in entry]
  assert secret['name'] == 'CALM_JAX_JOB_TOKEN'
  count = int(env['PROCESS_COUNT'])
  assert job['parallelism'] == job['completions'] == count
  port = container['ports'][0]['containerPort']
  assert env['JAX_COORDINATOR_ADDRESS'] == (
    f'{name}-{replicated["name"]}-0-0.{name}:{port}'
  )
  volumes = {volume['name'] for volume in pod['volumes']}
  assert {mount['name'] for mount in container['volumeMounts']} == volumes
  # The shell must hand over the flags, and what Kubernetes says.
  command = [*container['command'], *container['args']]
  assert command[0] == 'sh'
  script = command[2].replace('exec python', 'printf "%s\\n"')
  told = subprocess.run(
    [*command[:2], script, *command[3:]],
    env={**env, 'JOB_COMPLETION_INDEX': '1', 'PATH': os.environ['PATH']},
    capture_output=True,
    text=True,
  )
  lines = told.stdout.splitlines()
  assert lines[:4] == [
    '-m',
    'calm_jax.cli.train',
    f'--process_count={count}',
    '--process_index=1',
  ]
  assert lines[4:] == container['args']
  shipped = re.findall(r'--gin_file=(\S+)', text)
  assert shipped and all((ROOT / 'gin_configs' / f).exists() for f in shipped)
