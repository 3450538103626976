package main

import "time"

// A clock runs what is to happen in the order of its virtual times, one after the other.
type clock struct {
	now    time.Duration
	events []event // a heap of four branches
	slots  []slot  // what the events do
	free   []int32 // slots
	count  uint64  // of events so far: those of one time happen in the order in which they were made
}

type event struct {
	at    time.Duration
	count uint64
	slot  int32
}

// A slot is a function to call, or a message to deliver.
type slot struct {
	f     func()
	to    *node
	msg   []byte
	count uint64 // of its event
}

func (c *clock) time() time.Time { return time.Unix(0, 0).Add(c.now) }

// after calls f later, unless the result is called before.
func (c *clock) after(d time.Duration, f func()) (stop func()) {
	i := c.add(c.now+d, slot{f: f})
	count := c.slots[i].count
	return func() {
		if s := &c.slots[i]; s.count == count {
			s.f = nil
		}
	}
}

func (c *clock) add(at time.Duration, s slot) int32 {
	c.count++
	s.count = c.count
	var i int32
	if n := len(c.free); n > 0 {
		i, c.free = c.free[n-1], c.free[:n-1]
		c.slots[i] = s
	} else {
		i = int32(len(c.slots))
		c.slots = append(c.slots, s)
	}
	c.events = append(c.events, event{at, c.count, i})
	c.up(len(c.events) - 1)
	return i
}

// run lets all happen until a time.
func (c *clock) run(until time.Duration) {
	for len(c.events) > 0 && c.events[0].at <= until {
		e := c.events[0]
		last := len(c.events) - 1
		c.events[0] = c.events[last]
		c.events = c.events[:last]
		c.down(0)
		s := c.slots[e.slot]
		c.slots[e.slot] = slot{}
		c.free = append(c.free, e.slot)
		c.now = e.at
		switch {
		case s.to != nil:
			s.to.deliver(s.msg)
		case s.f != nil:
			s.f()
		}
	}
	c.now = until
}

func (e event) before(o event) bool { return e.at < o.at || e.at == o.at && e.count < o.count }

const branches = 4

func (c *clock) up(i int) {
	for i > 0 {
		parent := (i - 1) / branches
		if !c.events[i].before(c.events[parent]) {
			return
		}
		c.events[i], c.events[parent] = c.events[parent], c.events[i]
		i = parent
	}
}

func (c *clock) down(i int) {
	for {
		least := i
		for j := branches*i + 1; j <= branches*i+branches && j < len(c.events); j++ {
			if c.events[j].before(c.events[least]) {
				least = j
			}
		}
		if least == i {
			return
		}
		c.events[i], c.events[least] = c.events[least], c.events[i]
		i = least
	}
}
