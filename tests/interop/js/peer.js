// A peer on js-libp2p that does what it is told: one JSON array [command, argument] a line on stdin, one JSON value a
// line on stdout. ../test_js_libp2p.py drives it.
import './polyfill.js'
import { createInterface } from 'node:readline'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { circuitRelayServer, circuitRelayTransport } from '@libp2p/circuit-relay-v2'
import { generateKeyPair } from '@libp2p/crypto/keys'
import { dcutr } from '@libp2p/dcutr'
import { gossipsub } from '@libp2p/gossipsub'
import { identify } from '@libp2p/identify'
import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import { mdns } from '@libp2p/mdns'
import { ping } from '@libp2p/ping'
import { preSharedKey } from '@libp2p/pnet'
import { tcp } from '@libp2p/tcp'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import { opened } from './exchange.js'
import { Serving } from './serving.js'
import * as vectors from './vectors.js'
import * as wire from './wire.js'

const ECHO = '/mycelia/test-echo/1'
const NAMESPACE = wire.fakeNamespace()
const MODEL = wire.modelCid(NAMESPACE)
const TOPIC = wire.topicOf(NAMESPACE)
// A token of the model `fake` is a byte.
const tokensOf = (text) => [...new TextEncoder().encode(text)]

let node, serving
const digests = []
const held = new Map()
const told = new Map()
const discovered = new Map()
const waiting = new Map()

const commands = {
  // Starts the peer. announce: addresses besides those that AutoNAT would confirm. psk: text of a swarm key. relays:
  // whether it relays for others. punches: the addresses that it names by DCUtR, which it speaks if there are any.
  // onLan: whether it speaks multicast DNS.
  async start (options) {
    const { listen = [], announce = [], psk = null, onLan = false } = options
    const privateKey = await generateKeyPair('Ed25519')
    node = await createLibp2p({
      privateKey,
      addresses: { listen, appendAnnounce: announce },
      transports: [tcp(), circuitRelayTransport()],
      connectionEncrypters: [noise()],
      streamMuxers: [yamux()],
      connectionProtector: psk === null ? undefined : preSharedKey({ psk: new TextEncoder().encode(psk) }),
      connectionGater: { denyDialMultiaddr: () => false },
      peerDiscovery: onLan ? [mdns({ interval: 2_000 })] : [],
      services: servicesFor(options)
    })
    node.addEventListener('peer:identify', (event) => {
      told.set(event.detail.connection.id, event.detail)
      waiting.get(event.detail.connection.id)?.(event.detail)
    })
    node.addEventListener('peer:discovery', (event) => {
      discovered.set(String(event.detail.id), event.detail.multiaddrs.map(String))
    })
    serving = new Serving(node, privateKey)
    await node.handle(ECHO, async (stream) => {
      for await (const data of stream) stream.send(data)
      await stream.close()
    }, { runOnLimitedConnection: true })
    return node.peerId.toString()
  },

  addresses: async () => node.getMultiaddrs().map(String),
  async connections () {
    const row = (one) => ({ peer: String(one.remotePeer), address: String(one.remoteAddr), direct: one.direct })
    return node.getConnections().map(row)
  },

  // The peers that multicast DNS named, with their addresses.
  discovered: async () => Object.fromEntries(discovered),

  // Connects, and returns what identify says of the other side.
  async dial (address) {
    const connection = await node.dial(multiaddr(address))
    const { agentVersion, protocols, listenAddrs, observedAddr } = await identified(connection)
    return {
      peer: String(connection.remotePeer),
      address: String(connection.remoteAddr),
      agentVersion,
      protocols,
      listenAddrs: listenAddrs.map(String),
      observedAddr: String(observedAddr)
    }
  },

  ping: async (address) => await node.services.ping.ping(multiaddr(address)),

  // Sends bytes to another js peer, which returns them.
  async echo ({ address, size }) {
    const { stream, bytes } = await opened(node, multiaddr(address), ECHO)
    const sent = new Uint8Array(size).map((_, at) => at)
    const [received] = await Promise.all([bytes.read({ bytes: size }), bytes.write(sent)])
    await stream.close()
    return Buffer.compare(received.subarray(), sent) === 0
  },

  // count times the same prompt at once: the frames of each answer, or why there is none.
  async ask ({ count = 1, ...prompt }) {
    const results = await Promise.allSettled(Array.from({ length: count }, () => asked(prompt)))
    return results.map((result) => result.value ?? String(result.reason))
  },

  // The same, one after the other: how many were answered.
  async askInTurn ({ count, ...prompt }) {
    let answered = 0
    for (let at = 0; at < count; at++) answered += (await asked(prompt)).at(-1)[0] === 16
    return answered
  },

  // Leaves an answer after its first text.
  async leave ({ address, text, tokens, resets }) {
    const exchange = await opened(node, multiaddr(address), wire.ASK)
    await exchange.send(wire.ask({ 4: wire.sampling({ 1: tokens }), 6: text }))
    while ((await exchange.receive())[0] !== 15);
    if (resets) exchange.stream.abort(new Error('enough'))
    else await exchange.stream.close()
  },

  // An ask with the integer 0 for the temperature, as a CBOR library writes 0.0.
  async askWrongly ({ address, text }) {
    const exchange = await opened(node, multiaddr(address), wire.ASK)
    await exchange.send(wire.ask({ 4: wire.sampling({ 2: 0 }), 6: text }))
    return await exchange.answer()
  },

  // The nodes of the model `fake` that the DHT names.
  async findProviders () {
    const found = []
    for await (const provider of node.contentRouting.findProviders(MODEL, { signal: AbortSignal.timeout(20_000) })) {
      found.push({ peer: String(provider.id), addresses: provider.multiaddrs.map(String) })
    }
    return found
  },

  provide: async () => await node.contentRouting.provide(MODEL, { signal: AbortSignal.timeout(20_000) }),

  serve: async () => { await serving.start() },
  served: async () => ({ answers: serving.answers, heard: serving.heard }),
  hold: async (text) => await serving.hold(tokensOf(text)),

  // Notes the digests that are gossiped, after every check of sections 2 and 8.
  async follow () {
    node.services.pubsub.addEventListener('message', (event) => {
      note(event.detail).catch((error) => digests.push({ error: String(error) }))
    })
    node.services.pubsub.subscribe(TOPIC)
  },
  mesh: async () => node.services.pubsub.getMeshPeers(TOPIC),
  digests: async () => digests,
  blocks: async (text) => wire.blockHashes(NAMESPACE, tokensOf(text)).map(wire.hex),

  vectors: async () => await vectors.wrong()
}

function servicesFor ({ relays = false, kad = false, gossip = false, punches = [] }) {
  const found = { identify: identify(), ping: ping() }
  if (relays) found.relay = circuitRelayServer()
  if (kad) {
    found.dht = kadDHT({ protocol: wire.KAD, clientMode: kad !== 'server', peerInfoMapper: passthroughMapper })
  }
  if (gossip) {
    const msgIdFn = ({ from, sequenceNumber }) => wire.messageId(from.toMultihash().bytes, sequenceNumber)
    found.pubsub = gossipsub({ globalSignaturePolicy: 'StrictSign', msgIdFn })
  }
  if (punches.length) found.dcutr = punching(punches.map((one) => multiaddr(one)))
  return found
}

// DCUtR with the addresses at which others were seen to see this peer, whether or not AutoNAT has confirmed them.
const punching = (observed) => (components) => dcutr()(new Proxy(components, {
  get: (target, name) => name === 'addressManager' ? { getAddresses: () => observed } : target[name]
}))

// One prompt: a text or a conversation, and what a client has of its answer already.
async function asked ({ address, text = '', messages = [], tokens = 8, salt = '', answered = '', namespace = '' }) {
  const bytes = (digits) => new Uint8Array(Buffer.from(digits, 'hex'))
  const turns = messages.map(([role, content]) => ({ 1: role, 2: content, 3: '' }))
  const options = { 3: turns, 4: wire.sampling({ 1: tokens }), 6: text, 8: bytes(answered), 9: bytes(namespace) }
  const exchange = await opened(node, multiaddr(address), wire.ASK)
  await exchange.send(wire.ask(salt ? { ...options, 10: salt } : options))
  return await exchange.answer()
}

// What identify, which runs by itself on every connection, says of the other side.
async function identified (connection) {
  return told.get(connection.id) ?? await new Promise((resolve) => waiting.set(connection.id, resolve))
}

async function note (signed) {
  const message = wire.decode(signed.data)
  const head = message[1]
  const author = String(signed.from)
  const entries = wire.changed(held.get(author) ?? new Map(), message)
  const packed = wire.packedEntries([...entries].map(([hash, kind]) => [Buffer.from(hash, 'hex'), kind]))
  const hasRoot = Buffer.compare(wire.rootOf(packed), head[6]) === 0 && entries.size === head[5]
  if (hasRoot) held.set(author, entries)
  digests.push({
    author,
    isOwn: Buffer.compare(head[1], signed.from.toMultihash().bytes) === 0,
    isSigned: await wire.isSigned(head),
    isSignedIfChanged: await wire.isSigned({ ...head, 5: head[5] + 1 }),
    hasRoot,
    entries: [...entries.keys()]
  })
}

function plain (key, value) {
  if (value instanceof Uint8Array) return wire.hex(value)
  return value instanceof wire.Float ? value.value : value
}

for await (const line of createInterface({ input: process.stdin })) {
  const [command, argument] = JSON.parse(line)
  let result
  try {
    result = { value: (await commands[command](argument)) ?? null }
  } catch (error) {
    result = { error: error.stack ?? String(error) }
  }
  process.stdout.write(JSON.stringify(result, plain) + '\n')
}
process.exit(0)
