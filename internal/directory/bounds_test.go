package directory

import (
	"testing"
	"testing/synctest"
	"time"
)

// flood returns a node that takes part with n others, and a function that sends it messages as one of them.
func flood(n int) (*Directory, func(from int, m message)) {
	d := New(Config{Send: func(ID, []byte) {}})
	members := make([]Member, n)
	for i := range members {
		members[i].ID = ID(i + 1)
	}
	d.SetMembers(members[0], members)
	return d, func(from int, m message) {
		m.from = ID(from + 1)
		d.Receive(m.encode())
	}
}

// wantCounts compares what is counted with what is there.
func (d *Directory) wantCounts(t *testing.T) {
	t.Helper()
	d.lock()
	defer d.unlock()
	var all totals
	for _, r := range d.records {
		if len(r.holders) > maxHolders || len(r.transfers) > maxTransfers {
			t.Errorf("a record has %d holders and %d transfers", len(r.holders), len(r.transfers))
		}
		all.holders += len(r.holders)
		all.transfers += len(r.transfers)
		for _, tr := range r.transfers {
			all.receivers += len(tr.receivers)
			if len(tr.receivers) > maxReceivers || len(tr.most) > maxMost {
				t.Errorf("a transfer has %d receivers", len(tr.receivers))
			}
		}
	}
	if all != d.kept {
		t.Errorf("counted are %+v, there are %+v", d.kept, all)
	}
	if len(d.records) > maxRecords || all.holders > maxAllHolders || all.transfers > maxAllTransfers || all.receivers > maxAllReceivers {
		t.Errorf("%d records with %+v are too many", len(d.records), all)
	}
}

func TestFloodOfHolders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, send := flood(300)
		defer d.Close()
		for from := 1; from < 300; from++ {
			send(from, message{kind: kindAnnounce, held: keys(3)})
		}
		d.wantCounts(t)
		if n := len(d.records[testKey(0)].holders); n != maxHolders {
			t.Errorf("%d holders of one key, want %d", n, maxHolders)
		}
		for i := 0; i < maxRecords+1000; i += maxKeys {
			var held []Key
			for j := range maxKeys {
				held = append(held, testKey(i+j))
			}
			for from := range 9 {
				send(from+1, message{kind: kindAnnounce, held: held})
			}
		}
		d.wantCounts(t)
		time.Sleep(recordTTL + sweepEvery)
		synctest.Wait()
		if d.wantCounts(t); len(d.records) != 0 || d.kept != (totals{}) {
			t.Errorf("after %s there are %d records with %+v", recordTTL, len(d.records), d.kept)
		}
	})
}

func TestFloodOfTransfers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var last message
		d := New(Config{Send: func(_ ID, msg []byte) { last, _ = parseMessage(msg) }})
		defer d.Close()
		d.SetMembers(Member{ID: 1}, []Member{{ID: 1}, {ID: 2}})
		ask := func(k Key, scope Scope) message {
			d.Receive(message{kind: kindAsk, from: 2, number: 7, key: k, scope: scope, flags: flagJoin | flagLease}.encode())
			return last
		}
		for i := range 2 * maxTransfers {
			ask(testKey(0), Scope(i))
		}
		for i := range 2 * maxAllTransfers {
			if m := ask(testKey(i), 0); m.flags&flagLease == 0 {
				t.Fatalf("question %d: over the bounds nobody may fetch", i)
			}
		}
		d.wantCounts(t)
		if d.kept.transfers != maxAllTransfers {
			t.Errorf("%d transfers, want %d", d.kept.transfers, maxAllTransfers)
		}
		d.Receive(message{kind: kindAnnounce, from: 2, held: keys(9)}.encode())
		d.wantCounts(t)
		time.Sleep(transferTTL + 2*sweepEvery)
		synctest.Wait()
		if d.wantCounts(t); d.kept.transfers != 0 || d.kept.receivers != 0 {
			t.Errorf("after %s there are %+v", transferTTL, d.kept)
		}
	})
}

func TestFloodOfReceivers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = maxReceivers + 100
		d, send := flood(n)
		defer d.Close()
		for i := range 5 { // as many as there may be in all, and more
			for from := range n {
				send(from, message{kind: kindProgress, key: testKey(i), offset: int64(from)})
			}
		}
		d.wantCounts(t)
		if d.kept.receivers != maxAllReceivers {
			t.Errorf("%d receivers, want %d", d.kept.receivers, maxAllReceivers)
		}
		// One that comes and goes leaves nothing behind.
		for range 1000 {
			send(1, message{kind: kindProgress, key: testKey(0), flags: flagEnded})
			send(1, message{kind: kindProgress, key: testKey(0)})
		}
		d.wantCounts(t)
		for i := range 5 {
			for from := range n {
				send(from, message{kind: kindProgress, key: testKey(i), flags: flagEnded})
			}
		}
		if d.wantCounts(t); d.kept.receivers != 0 {
			t.Errorf("%d receivers that ended are kept", d.kept.receivers)
		}
	})
}

func TestHeldIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, _ := flood(4)
		defer d.Close()
		d.Hold(keys(maxHeld+100), nil)
		if len(d.held) != maxHeld {
			t.Errorf("%d are held, want %d", len(d.held), maxHeld)
		}
	})
}
