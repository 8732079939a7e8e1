// Some dependencies of js-libp2p want Node.js 22. On older ones this is all that they lack.
Promise.withResolvers ??= function () {
  const one = {}
  one.promise = new this((resolve, reject) => Object.assign(one, { resolve, reject }))
  return one
}
