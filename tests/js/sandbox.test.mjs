// The official JavaScript SDKs, unmodified: `e2b` and `@e2b/code-interpreter`, against a running server.
// Run by tests/integration/test_sdk_js.py, which sets E2B_API_KEY, E2B_API_URL and E2B_SANDBOX_URL.
import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { CommandExitError, FileNotFoundError, Sandbox as PlainSandbox, NotFoundError, AuthenticationError } from 'e2b'
import { Sandbox } from '@e2b/code-interpreter'

async function until(condition, ms) {
  const end = Date.now() + ms
  while (!(await condition())) {
    assert.ok(Date.now() < end, `still not so after ${ms} ms`)
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}

describe('the life of a sandbox', () => {
  test('create, info, list, connect, timeout, kill', async () => {
    const made = await PlainSandbox.create({ timeoutMs: 60_000, metadata: { kind: 'js &=' }, envs: { GREETING: 'hi' } })
    const info = await made.getInfo()
    assert.equal(info.sandboxId, made.sandboxId)
    assert.equal(info.state, 'running')
    assert.deepEqual(info.metadata, { kind: 'js &=' })
    assert.equal((await made.commands.run('echo $GREETING')).stdout, 'hi\n')
    const listed = await PlainSandbox.list({ query: { metadata: { kind: 'js &=' } } }).nextItems()
    assert.deepEqual(listed.map((item) => item.sandboxId), [made.sandboxId])
    const again = await PlainSandbox.connect(made.sandboxId)
    assert.equal(await again.isRunning(), true)
    await made.setTimeout(1000)
    await until(async () => !(await made.isRunning()), 10_000)
    assert.equal(await made.kill(), false)
  })

  test('mistakes have their own errors', async () => {
    await assert.rejects(PlainSandbox.connect('i' + '0'.repeat(19)), NotFoundError)
    await assert.rejects(PlainSandbox.create({ apiKey: 'e2b_' + '0'.repeat(40) }), AuthenticationError)
    await assert.rejects(PlainSandbox.create('no-such-template'), /no-such-template/)
  })

  test('pause, list by state, connect, traffic', async () => {
    const made = await Sandbox.create({ timeoutMs: 60_000, lifecycle: { onTimeout: 'pause', autoResume: true } })
    await made.runCode('x = 42')
    const handle = await made.commands.run('exec sleep 60', { background: true, timeoutMs: 0 })
    const told = assert.rejects(handle.wait(), /killed or reached its end of life/)
    assert.equal(await made.pause(), true)
    await told
    assert.equal(await made.pause(), false)
    assert.equal(await made.isRunning(), false)
    const listed = await PlainSandbox.list({ query: { state: ['paused'] } }).nextItems()
    assert.ok(listed.some((item) => item.sandboxId === made.sandboxId && item.state === 'paused'))
    await made.connect({ timeoutMs: 60_000 })
    assert.equal((await made.runCode('x')).text, '42')
    assert.ok((await made.commands.list()).some((process) => process.pid === handle.pid))
    await made.setTimeout(0)
    assert.equal((await made.getInfo()).state, 'paused')
    assert.equal((await made.runCode('x')).text, '42')
    assert.equal(await made.kill(), true)
  })

  test('a run is told when its sandbox is killed', async () => {
    const made = await PlainSandbox.create({ timeoutMs: 60_000 })
    const handle = await made.commands.run('sleep 60', { background: true })
    const told = assert.rejects(handle.wait(), /killed or reached its end of life/)
    await made.kill()
    await told
  })
})

describe('commands, files and terminals', () => {
  let sandbox
  before(async () => {
    sandbox = await PlainSandbox.create({ timeoutMs: 120_000 })
  })
  after(async () => {
    await sandbox.kill()
  })

  test('commands stream, fail, take input', async () => {
    const seen = []
    const result = await sandbox.commands.run('echo out; echo err >&2', {
      onStdout: (text) => seen.push(text),
      onStderr: (text) => seen.push(text),
    })
    assert.equal(result.stdout, 'out\n')
    assert.equal(result.stderr, 'err\n')
    assert.deepEqual(seen.toSorted(), ['err\n', 'out\n'])
    await assert.rejects(sandbox.commands.run('exit 5'), (error) => error instanceof CommandExitError && error.exitCode === 5)
    assert.equal((await sandbox.commands.run('whoami', { user: 'root' })).stdout, 'root\n')
    const cat = await sandbox.commands.run('cat', { background: true, stdin: true })
    await sandbox.commands.sendStdin(cat.pid, 'typed\n')
    await sandbox.commands.closeStdin(cat.pid)
    assert.equal((await cat.wait()).stdout, 'typed\n')
  })

  test('background commands are listed and killed', async () => {
    const handle = await sandbox.commands.run('sleep 71', { background: true })
    assert.ok((await sandbox.commands.list()).some((process) => process.pid === handle.pid))
    assert.equal(await handle.kill(), true)
    await assert.rejects(handle.wait(), CommandExitError)
    assert.equal(await sandbox.commands.kill(handle.pid), false)
  })

  test('files in every format', async () => {
    await sandbox.files.write('js/text.txt', 'text ✓')
    assert.equal(await sandbox.files.read('js/text.txt'), 'text ✓')
    const bytes = crypto.getRandomValues(new Uint8Array(60_000))
    await sandbox.files.write('js/blob', bytes.buffer)
    assert.deepEqual(await sandbox.files.read('js/blob', { format: 'bytes' }), bytes)
    await sandbox.files.write('js/empty', '')
    assert.equal(await sandbox.files.read('js/empty'), '')
    const many = await sandbox.files.write([{ path: 'js/a', data: '1' }, { path: 'js/b', data: new Blob(['2']) }])
    assert.deepEqual(many.map((entry) => entry.path), ['/home/user/js/a', '/home/user/js/b'])
    assert.deepEqual((await sandbox.files.list('js')).map((entry) => entry.name), ['a', 'b', 'blob', 'empty', 'text.txt'])
    assert.equal(await sandbox.files.exists('js/nope'), false)
    await sandbox.files.rename('js/a', 'js/c')
    assert.equal((await sandbox.files.getInfo('js/c')).size, 1)
    await sandbox.files.remove('js')
    await assert.rejects(sandbox.files.read('js/c'), FileNotFoundError)
    assert.equal(await sandbox.files.makeDir('js'), true)
    assert.equal(await sandbox.files.makeDir('js'), false)
  })

  test('watching', async () => {
    await sandbox.files.makeDir('watched')
    const events = []
    const handle = await sandbox.files.watchDir('watched', (event) => events.push(`${event.type} ${event.name}`))
    await sandbox.files.write('watched/new', 'x')
    await until(() => events.length >= 3, 5000)
    assert.equal(events[0], 'create new')
    await handle.stop()
  })

  test('signed URLs', async () => {
    await sandbox.files.write('signed.txt', 'by url')
    const url = await sandbox.downloadUrl('signed.txt', { useSignatureExpiration: 60 })
    assert.equal(await (await fetch(url)).text(), 'by url')
    const late = await sandbox.downloadUrl('signed.txt', { useSignatureExpiration: -10 })
    assert.equal((await fetch(late)).status, 401)
  })

  test('a terminal', async () => {
    let output = ''
    const terminal = await sandbox.pty.create({
      cols: 90,
      rows: 20,
      timeoutMs: 0,
      onData: (data) => {
        output += new TextDecoder().decode(data)
      },
    })
    await sandbox.pty.resize(terminal.pid, { cols: 61, rows: 20 })
    await sandbox.pty.sendInput(terminal.pid, new TextEncoder().encode('tput cols; exit\n'))
    assert.equal((await terminal.wait()).exitCode, 0)
    assert.match(output, /61/)
  })
})

describe('the code interpreter', () => {
  let sandbox
  before(async () => {
    sandbox = await Sandbox.create({ timeoutMs: 120_000 })
  })
  after(async () => {
    await sandbox.kill()
  })

  test('state, streams, results', async () => {
    await sandbox.runCode('x = 20')
    const lines = []
    const execution = await sandbox.runCode('print("counting"); x * 2 + 2', { onStdout: (message) => lines.push(message.line) })
    assert.equal(execution.text, '42')
    assert.equal(lines.join(''), 'counting\n')
    assert.equal(execution.executionCount, 2)
  })

  test('errors', async () => {
    const execution = await sandbox.runCode('1/0')
    assert.equal(execution.error.name, 'ZeroDivisionError')
    assert.match(execution.error.traceback, /1\/0/)
  })

  test('charts', async () => {
    const execution = await sandbox.runCode('import matplotlib.pyplot as plt\nplt.plot([1, 2], [3, 5], label="l")\nplt.title("T")\nplt.show()')
    assert.ok(Buffer.from(execution.results[0].png, 'base64').subarray(1, 4).equals(Buffer.from('PNG')))
    assert.equal(execution.results[0].chart.type, 'line')
    assert.deepEqual(execution.results[0].chart.elements[0].points, [[1, 3], [2, 5]])
  })

  test('contexts', async () => {
    const context = await sandbox.createCodeContext({ cwd: '/tmp' })
    assert.equal((await sandbox.runCode('import os; os.getcwd()', { context })).text, '/tmp')
    await sandbox.restartCodeContext(context)
    assert.ok((await sandbox.listCodeContexts()).some((item) => item.id === context.id))
    await sandbox.removeCodeContext(context)
    await assert.rejects(sandbox.runCode('1', { context }))
  })

  test('a timeout interrupts, and the context is free again', async () => {
    await assert.rejects(sandbox.runCode('import time; time.sleep(100)', { timeoutMs: 1000 }), /timed? ?out/i)
    assert.equal((await sandbox.runCode('"free"', { timeoutMs: 15_000 })).text, 'free')
  })
})
