// Mycelia's messages, hashes and signatures, written from proto/interoperability.md alone.
import { createHash } from 'node:crypto'
import { blake3 } from '@noble/hashes/blake3.js'
import { publicKeyFromRaw } from '@libp2p/crypto/keys'
import { decode as decodeCbor, encode as encodeCbor, rfc8949EncodeOptions, Token, Tokenizer, Type } from 'cborg'
import { CID } from 'multiformats/cid'
import { create as createDigest } from 'multiformats/hashes/digest'

export const CONTROL = '/mycelia/control/1'
export const GENERATE = '/mycelia/generate/1'
export const ASK = '/mycelia/ask/1'
export const KAD = '/mycelia/kad/1.0.0'

// --- section 4: messages ---------------------------------------------------------------------------------------------

// A number that is a float on the wire, also a whole one: JavaScript does not tell 0.0 from 0.
export class Float {
  constructor (value) { this.value = value }
}

const ENCODE = {
  ...rfc8949EncodeOptions,
  typeEncoders: { Object: (object) => object instanceof Float ? [new Token(Type.float, object.value)] : null }
}
const DECODE = { useMaps: true, strict: true, allowIndefinite: false, rejectDuplicateMapKeys: true }

// A message is an object with its keys as names: {0: 13, 1: ...}.
export function encode (message) {
  return encodeCbor(asMap(message), ENCODE)
}

function asMap (value) {
  if (Array.isArray(value)) return value.map(asMap)
  if (value === null || typeof value !== 'object' || value instanceof Uint8Array || value instanceof Float) return value
  return new Map(Object.entries(value).map(([key, item]) => [Number(key), asMap(item)]))
}

// Keeps floats apart from integers.
class FloatsKept extends Tokenizer {
  next () {
    const token = super.next()
    return Type.equals(token.type, Type.float) ? new Token(token.type, new Float(token.value)) : token
  }
}

// A message has one byte form. Throws for anything else.
export function decode (data) {
  const message = asObject(decodeCbor(data, { ...DECODE, tokenizer: new FloatsKept(data, DECODE) }))
  if (Buffer.compare(encode(message), data) !== 0) throw new Error('not in deterministic encoding')
  return message
}

function asObject (value) {
  if (Array.isArray(value)) return value.map(asObject)
  if (value instanceof Map) return Object.fromEntries([...value].map(([key, item]) => [key, asObject(item)]))
  return value
}

// What sampling is left to: eight tokens, greedy, everything else off.
export function sampling (changes = {}) {
  const off = { 3: 0, 4: 0, 5: new Float(1), 6: new Float(0), 7: new Float(1), 8: new Float(0), 9: new Float(0), 10: 0 }
  return { 1: 8, 2: new Float(0), ...off, 11: [], 12: 0, 13: '', 14: 'gbnf', ...changes }
}

export function ask (changes = {}) {
  const none = new Uint8Array()
  const message = { 0: 13, 1: new Uint8Array(16), 2: '', 3: [], 4: sampling(), 5: '', 6: '', 7: none, 8: none, 9: none }
  return { ...message, ...changes }
}

// --- section 2: derived values ---------------------------------------------------------------------------------------

const ascii = (text) => new TextEncoder().encode(text)
const derived = (context, data, length) => blake3(data, { context: ascii(`mycelia 2026 ${context} v1`), dkLen: length })
export const concat = (...parts) => new Uint8Array(Buffer.concat(parts))
export const hex = (data) => Buffer.from(data).toString('hex')
export const packed = (tokens) => concat(...tokens.map((token) => number(token, 4).reverse()))

export function number (value, length) {
  const data = Buffer.alloc(8)
  data.writeBigUInt64BE(BigInt(value))
  return new Uint8Array(data.subarray(8 - length))
}

export function namespaceOf (model, kv, salt = new Uint8Array()) {
  const parts = [model, ascii(kv), salt].map((part) => concat(number(part.length, 4), part))
  return derived('namespace', concat(...parts), 16)
}

export const fakeNamespace = () => namespaceOf(ascii('fake'), 'fake')

export function blockHashes (namespace, tokens) {
  const key = derived('block hash', namespace, 32)
  const hash = createHash('sha256').update(key)
  const found = []
  for (let end = 64; end <= tokens.length; end += 64) {
    hash.update(packed(tokens.slice(end - 64, end)))
    found.push(new Uint8Array(hash.copy().digest().subarray(0, 8)))
  }
  return found
}

// Entries of a digest: [hash, class], sorted by hash.
export function packedEntries (entries) {
  const sorted = [...entries].sort(([one], [other]) => Buffer.compare(one, other))
  return concat(...sorted.map(([hash, kind]) => concat(hash, new Uint8Array([kind]))))
}

// The set after a delta or an announce: a map of hashes, in hexadecimal, to classes.
export function changed (entries, message) {
  const found = new Map(entries)
  if (message[0] !== 6) return found
  for (let at = 0; at < message[3].length; at += 9) found.set(hex(message[3].subarray(at, at + 8)), message[3][at + 8])
  for (let at = 0; at < message[4].length; at += 8) found.delete(hex(message[4].subarray(at, at + 8)))
  return found
}

export const rootOf = (entries) => derived('digest root', entries, 16)

export const messageId = (author, seqno) => blake3(concat(author, number(seqno, 8)), { dkLen: 12 })

// --- section 8: heads ------------------------------------------------------------------------------------------------

export function signedPayload (head) {
  const versions = concat(number(head[3], 8), number(head[4], 8), number(head[5], 4), number(head[7], 8))
  const owner = concat(new Uint8Array([head[1].length]), head[1])
  return concat(ascii('mycelia head v1\0'), owner, head[2], versions, head[6], new Uint8Array([head[9]]))
}

export async function isSigned (head) {
  const prefix = Buffer.from('002408011220', 'hex')
  if (head[1].length !== 38 || Buffer.compare(head[1].subarray(0, 6), prefix) !== 0) return false
  return await publicKeyFromRaw(head[1].subarray(6)).verify(signedPayload(head), head[8])
}

export async function signedHead (privateKey, owner, namespace, entries) {
  const now = Date.now()
  const packedAll = packedEntries(entries)
  const head = { 1: owner, 2: namespace, 3: now, 4: 1, 5: entries.length, 6: rootOf(packedAll), 7: now, 9: 0 }
  return { ...head, 8: await privateKey.sign(signedPayload(head)) }
}

// --- section 6: keys of the DHT --------------------------------------------------------------------------------------

export function modelCid (namespace, cell = '') {
  const digest = createHash('sha256').update(`/mycelia/model/${hex(namespace)}${cell}`).digest()
  return CID.createV1(0x55, createDigest(0x12, new Uint8Array(digest)))
}

export const topicOf = (namespace) => `mycelia/1/${hex(namespace)}`
