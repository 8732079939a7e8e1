// Mycelia's streams: each message follows its length (section 4 of proto/interoperability.md).
import { byteStream } from '@libp2p/utils'
import { decode, encode, concat, number } from './wire.js'

// Answers, failures and bounces end an exchange.
const LAST = new Set([11, 12, 16, 17])
const MAX_MESSAGE_BYTES = 1_048_576

export class Exchange {
  constructor (stream) {
    this.stream = stream
    this.bytes = byteStream(stream)
  }

  async send (message) {
    await this.sendRaw(encode(message))
  }

  async sendRaw (data) {
    await this.bytes.write(concat(number(data.length, 4), data))
  }

  async receive () {
    const header = (await this.bytes.read({ bytes: 4 })).subarray()
    const length = Buffer.from(header).readUInt32BE()
    if (length > MAX_MESSAGE_BYTES) throw new Error(`a message of ${length} bytes`)
    return decode(new Uint8Array((await this.bytes.read({ bytes: length })).subarray()))
  }

  // All messages up to the last one. Ends both directions.
  async answer () {
    const frames = []
    do frames.push(await this.receive())
    while (!LAST.has(frames.at(-1)[0]))
    await this.stream.close()
    return frames
  }
}

export async function opened (node, peer, protocol) {
  const options = { runOnLimitedConnection: true, maxOutboundStreams: 1_000, signal: AbortSignal.timeout(20_000) }
  return new Exchange(await node.dialProtocol(peer, protocol, options))
}
