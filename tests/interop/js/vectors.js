// The test vectors in ../../proto/wire/vectors, checked by what wire.js makes of them.
import { readFileSync } from 'node:fs'
import { publicKeyFromRaw } from '@libp2p/crypto/keys'
import * as wire from './wire.js'

const read = (name) => JSON.parse(readFileSync(new URL(`../../proto/wire/vectors/${name}.json`, import.meta.url)))
const bytes = (text) => new Uint8Array(Buffer.from(text, 'hex'))

// What is wrong; nothing, if all is well.
export async function wrong () {
  const found = []
  const check = (holds, what) => { if (!holds) found.push(what) }
  for (const { kind, hex } of read('messages')) {
    check(wire.hex(wire.encode(wire.decode(bytes(hex)))) === hex, kind)
  }
  const hashes = read('hashes')
  for (const { model_digest: model, kv_settings: kv, salt, namespace } of hashes.namespaces) {
    check(wire.hex(wire.namespaceOf(bytes(model), kv, bytes(salt))) === namespace, `namespace of ${kv}`)
  }
  for (const { namespace, tokens, hashes: wanted } of hashes.blocks) {
    const found = wire.blockHashes(bytes(namespace), tokens).map(wire.hex)
    check(String(found) === String(wanted), `${tokens.length} tokens`)
  }
  for (const { namespace, cell, key } of hashes.keys) {
    check(wire.hex(wire.modelCid(bytes(namespace), cell).multihash.bytes) === key, `key of ${namespace}${cell}`)
  }
  const digests = read('digests')
  for (const { packed, root } of digests.roots) check(wire.hex(wire.rootOf(bytes(packed))) === root, `root ${root}`)
  for (const { owner, head, payload, signature } of digests.heads) {
    const isSigned = await publicKeyFromRaw(bytes(owner).subarray(6)).verify(bytes(payload), bytes(signature))
    check(isSigned, `signature of ${payload}`)
    // (JSON.parse rounds the largest numbers)
    if (!Number.isSafeInteger(head[3])) continue
    const fields = Object.entries(head).map(([key, value]) => [key, value.slice ? bytes(value.slice(2, -1)) : value])
    check(wire.hex(wire.signedPayload(Object.fromEntries(fields))) === payload, `payload ${payload}`)
  }
  return found
}
