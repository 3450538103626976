package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
)

// A member is what a node says of another one.
type member struct {
	Name  string `json:"name"` // host:port of its gossip
	State string `json:"state"`
}

// ask decodes what a node answers to a question of the JSON API.
func (n *node) ask(ctx context.Context, question string, answer any) error {
	resp, err := httpGet(ctx, n.client, "http://"+n.metrics+"/api/v1/"+question)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(answer); err != nil {
		return fmt.Errorf("/api/v1/%s: %w", question, err)
	}
	return nil
}

// meets waits until node n has found others; itself among them does not count.
func (n *node) meets(ctx context.Context, others []*node) error {
	return await(ctx, n.gossip+" has met the others", func(ctx context.Context) (bool, error) {
		var answer struct{ Peers []member }
		err := n.ask(ctx, "peers", &answer)
		for _, o := range others {
			if o != n && !slices.Contains(answer.Peers, member{o.gossip, "up"}) {
				return false, err
			}
		}
		return true, nil
	})
}

// locates waits until node n would find an image's first layer at another node.
func (n *node) locates(ctx context.Context, i image, holder *node) error {
	dgst := i.layers[0].Digest.String()
	return await(ctx, n.gossip+" finds what "+holder.gossip+" has", func(ctx context.Context) (bool, error) {
		var answer struct {
			Content []struct {
				Digest  string
				Holders []member
			}
		}
		err := n.ask(ctx, "locate/"+dgst, &answer)
		for _, c := range answer.Content {
			if c.Digest == dgst && slices.ContainsFunc(c.Holders, func(m member) bool { return m.Name == holder.gossip }) {
				return true, nil
			}
		}
		return false, err
	})
}
