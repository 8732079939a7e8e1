// A peer that serves the model `fake`: it says hello, reports its load, gossips a digest and answers `generate`.
import { Exchange, opened } from './exchange.js'
import {
  blockHashes, CONTROL, encode, fakeNamespace, GENERATE, packed, packedEntries, signedHead, topicOf
} from './wire.js'

const CONTEXT = 65_536
// Fast and idle: nodes with slower engines choose it.
export const VITALS = { 1: 0, 2: 0, 3: 0, 4: 4, 5: 100_000, 6: 10_000, 7: 0 }

export class Serving {
  constructor (node, privateKey) {
    this.node = node
    this.privateKey = privateKey
    this.namespace = fakeNamespace()
    this.entries = []
    this.controls = new Map()
    this.heard = []
    this.answers = 0
  }

  async start () {
    const options = { runOnLimitedConnection: true, maxInboundStreams: 64 }
    await this.node.handle(CONTROL, (stream, { remotePeer }) => this.control(stream, remotePeer), options)
    await this.node.handle(GENERATE, (stream) => this.generate(stream), options)
    this.node.addEventListener('peer:connect', (event) => this.greet(event.detail).catch(() => {}))
    for (const peer of this.node.getPeers()) await this.greet(peer)
  }

  // Sends on the one control stream to a peer.
  async tell (peer, message) {
    const key = peer.toString()
    if (!this.controls.has(key)) this.controls.set(key, opened(this.node, peer, CONTROL))
    const control = await this.controls.get(key)
    await control.send(message)
  }

  async greet (peer) {
    this.controls.delete(peer.toString())
    const served = { 1: this.namespace, 2: 'fake', 3: CONTEXT, 4: VITALS }
    await this.tell(peer, { 0: 1, 1: 2, 2: 'js', 3: [served] })
  }

  async control (stream, peer) {
    const control = new Exchange(stream)
    for (;;) {
      const message = await control.receive().catch(() => null)
      if (message === null) return
      this.heard.push(message[0])
      if (message[0] === 18) await this.tell(peer, { 0: 2, 1: this.namespace, 2: VITALS })
      if (message[0] === 3) await this.repair(peer, message)
    }
  }

  // Answers the question for this peer's own digest with everything.
  async repair (peer, question) {
    if (Buffer.compare(question[1], this.owner()) !== 0 || !this.head) return
    await this.tell(peer, { 0: 4, 1: this.head, 2: 2, 3: 0, 4: packedEntries(this.entries), 5: new Uint8Array() })
  }

  owner () { return this.node.peerId.toMultihash().bytes }

  // Publishes a digest: this peer holds the whole blocks of `tokens`.
  async hold (tokens) {
    this.entries = blockHashes(this.namespace, tokens).map((hash) => [hash, 0])
    this.head = await signedHead(this.privateKey, this.owner(), this.namespace, this.entries)
    const delta = { 0: 6, 1: this.head, 2: 0, 3: packedEntries(this.entries), 4: new Uint8Array() }
    await this.node.services.pubsub.publish(topicOf(this.namespace), encode(delta))
  }

  async generate (stream) {
    const exchange = new Exchange(stream)
    const request = await exchange.receive()
    const prompt = request[3].length / 4
    const count = Math.min(request[4][1], 3)
    const tokens = [106, 115, 33].slice(0, count) // "js!"
    await exchange.send({ 0: 9, 1: 0, 2: VITALS })
    await exchange.send({ 0: 10, 1: 0, 2: packed(tokens), 3: new Uint8Array(tokens), 4: [] })
    const usage = { 1: prompt, 2: 0, 3: count, 4: 0, 5: 1, 6: 1 }
    await exchange.send({ 0: 11, 1: count < 3 ? 'length' : 'stop', 2: usage, 3: VITALS })
    this.answers += 1
    await stream.close()
  }
}
