"""Secure aggregation: a server learns the weighted sum of its clients' updates, and no single one.

The protocol is that of Bonawitz et al. 2017 (ePrint 2017/281) against a server that does not follow it, on the sparse
graph of Bell et al. 2020 (ePrint 2020/704) if there are many clients:

1. *Advertise.* Each client draws two key pairs for the round and signs the public keys with its identity key.
2. *Share keys.* It checks everybody's signatures, and sends shares of its two secrets, encrypted, to its neighbors.
3. *Masked input.* It sends its quantized update plus a mask for each neighbor, which cancels in the sum, and a mask of
   its own.
4. *Unmask.* Clients sign the list of those whose input has arrived. Who has seen enough equal lists reveals, for each
   neighbor, *either* a share of its own mask (it is in the sum) *or* a share of its key (it has dropped out).

===================  =================================================================  ===============================
file                 does                                                               source
===================  =================================================================  ===============================
`terms`              what all clients of a round agree on; thresholds
`participant`        a client's identity, the identities of the others, its own limits
`ring`               weighted updates as integers modulo 2³², and the error of it       Bonawitz et al. 2017, 4.0
`noise_shares`       clipping and noise at the clients, for differential privacy        Kairouz et al. 2021
`discrete_gaussian`  its noise, exactly                                                 Canonne et al. 2020
`masks`              masks from secrets                                                 ChaCha20 (RFC 8439)
`agreement`          signed keys; secrets of pairs of clients                           X25519, Ed25519, HKDF
`shares`             secrets in shares, of which some number restores them              Shamir 1979
`graph`              who is masked with whom                                            Bell et al. 2020
`messages`           what clients and server send
`client`             a client in one round                                              Bonawitz et al. 2017, figure 4
`server`             the server in one round                                            Bonawitz et al. 2017, figure 4
`session`            a round in memory
`randomness`         where secrets come from
`requirements`       the libraries of the ``secure`` extra
===================  =================================================================  ===============================

No primitive is implemented here: X25519, Ed25519, HKDF, ChaCha20 and ChaCha20-Poly1305 are those of ``cryptography``,
Shamir's shares those of ``pycryptodome``.

Not covered: which clients took part, how many, and the sum of their weights, which the server learns; what the sum
itself tells; a client that sends a wrong update, which nobody can see; and clients that work together with the server
beyond what the threshold allows, see `terms`.
"""
