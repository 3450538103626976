package directory

import (
	"slices"
	"time"
)

// Bounds of what a coordinator keeps. With all of them reached at once it has some 30 MB.
const (
	maxRecords = 1 << 15 // keys: 5 MB without what they have

	maxHolders    = 64      // of one key: more are not needed to find one
	maxAllHolders = 1 << 18 // 16 bytes each

	maxTransfers    = 8       // of one key: from as many registries
	maxAllTransfers = 1 << 12 // some 500 bytes each

	maxReceivers    = 1 << 14 // of one transfer
	maxAllReceivers = 1 << 16 // some 150 bytes each
)

const (
	transferTTL = time.Minute // a transfer of which nothing was heard is forgotten
	sweepEvery  = 15 * time.Second
)

// A record is what this node keeps of a key as its coordinator.
type record struct {
	holders   []holder
	transfers []*transfer
}

// totals counts what all records have.
type totals struct{ holders, transfers, receivers int }

type holder struct {
	id   ID
	late bool
	ends time.Duration // by the directory's clock, as all times in records
}

// announced takes what another node says it holds.
func (d *Directory) announced(m message) {
	now := d.now()
	for _, key := range m.held {
		if r := d.record(key); r != nil {
			d.hold(r, holder{id: m.from, ends: now + recordTTL})
		}
	}
	for _, key := range m.late {
		if r := d.record(key); r != nil {
			d.hold(r, holder{id: m.from, late: true, ends: now + recordTTL})
		}
	}
	for _, key := range m.dropped {
		if r := d.records[key]; r != nil {
			d.forget(r, func(h holder) bool { return h.id == m.from })
			d.tidy(key, r)
		}
	}
	if m.from != d.self.ID {
		d.send(m.from, message{kind: kindAck, from: d.self.ID, number: m.number})
	}
}

// hold notes a holder. If there are too many, it takes the place of any.
func (d *Directory) hold(r *record, h holder) {
	if i := slices.IndexFunc(r.holders, func(o holder) bool { return o.id == h.id }); i >= 0 {
		r.holders[i] = h
		return
	}
	full := len(r.holders) == maxHolders || d.kept.holders >= maxAllHolders
	if full && h.late {
		return // those who are there may be ready
	}
	if full && len(r.holders) > 0 {
		r.holders[d.rand.IntN(len(r.holders))] = h
		return
	}
	if full && !d.forgetOne() {
		return
	}
	r.holders = append(r.holders, h)
	d.kept.holders++
}

// forget drops the holders that gone is true for.
func (d *Directory) forget(r *record, gone func(holder) bool) {
	before := len(r.holders)
	r.holders = slices.DeleteFunc(r.holders, gone)
	d.kept.holders -= before - len(r.holders)
}

// record returns the record of key, new if need be. It returns nil if there are too many already, all of them of transfers.
func (d *Directory) record(key Key) *record {
	r := d.records[key]
	if r != nil {
		return r
	}
	if len(d.records) >= maxRecords && !d.forgetOne() {
		return nil
	}
	r = &record{}
	d.records[key] = r
	return r
}

// forgetOne drops any record with holders and without a transfer: they announce it again.
func (d *Directory) forgetOne() bool {
	tries := 0
	for key, r := range d.records {
		if len(r.transfers) == 0 && len(r.holders) > 0 {
			d.kept.holders -= len(r.holders)
			delete(d.records, key)
			return true
		}
		if tries++; tries == 100 {
			break
		}
	}
	return false
}

// tidy drops a record that has nothing.
func (d *Directory) tidy(key Key, r *record) {
	if len(r.holders) == 0 && len(r.transfers) == 0 {
		delete(d.records, key)
	}
}

// sweep forgets what ended.
func (d *Directory) sweep() {
	now := d.now()
	for key, r := range d.records {
		d.forget(r, func(h holder) bool { return now > h.ends })
		r.transfers = slices.DeleteFunc(r.transfers, func(t *transfer) bool {
			if now-t.used > transferTTL {
				d.kept.transfers--
				d.kept.receivers -= len(t.receivers)
				return true
			}
			d.kept.receivers -= t.expire(now)
			return false
		})
		d.tidy(key, r)
	}
}

// transfer returns the transfer of a scope, new if need be, or nil if there are too many.
func (d *Directory) transfer(r *record, scope Scope, now time.Duration) *transfer {
	if t := r.find(scope); t != nil {
		t.used = now
		return t
	}
	if len(r.transfers) == maxTransfers || d.kept.transfers >= maxAllTransfers {
		return nil
	}
	t := newTransfer(scope, now)
	r.transfers = append(r.transfers, t)
	d.kept.transfers++
	return t
}

// find returns the transfer of a scope, or any of scope 0.
func (r *record) find(scope Scope) *transfer {
	for _, t := range r.transfers {
		if t.scope == scope || scope == 0 {
			return t
		}
	}
	return nil
}
