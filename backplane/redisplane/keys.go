package redisplane

import (
	"fmt"
	"strconv"
)

// Keys of a topic all begin with the prefix of its partition, <prefix>{<tag>}, whose
// tag is all that Redis Cluster hashes, so that they are in one slot. After it comes
// one letter for the kind:
//
//	m:<topic>                      the head: how far the numbers have got
//	s<epoch><first>:<topic>        a segment; the epoch has 16 digits, first none but digits
//	i<length of topic>:<topic><id> what became of an ID
//	c<database>:<topic>            the channel of live messages
//	p:<node>                       the channel of a node's probes
//
// So two different things never have one name: the kinds differ in the first letter,
// and each kind can be taken apart again. A channel names the database because Pub/Sub
// knows none: what is announced in one would be heard in all.

func headKey(prefix, topic string) string { return prefix + "m:" + topic }
func probeKey(prefix, node string) string { return prefix + "p:" + node }

func channelKey(prefix string, database int, topic string) string {
	return prefix + "c" + strconv.Itoa(database) + ":" + topic
}

func idKey(prefix, topic, id string) string {
	return fmt.Sprintf("%si%d:%s%s", prefix, len(topic), topic, id)
}

const slots = 16384

// tags returns n hash tags whose slots are spread evenly over the cluster.
func tags(n int) []string {
	if n == 1 {
		return []string{"0"}
	}
	found := make([]string, n)
	for left, k := n, 0; left > 0; k++ {
		tag := strconv.Itoa(k)
		if i := int(slot(tag)) * n / slots; found[i] == "" {
			found[i] = tag
			left--
		}
	}
	return found
}

// slot is the hash slot of a tag: CRC16 (XMODEM) modulo 16384, see the Redis Cluster
// specification.
func slot(tag string) uint16 {
	crc := uint16(0)
	for i := range len(tag) {
		crc ^= uint16(tag[i]) << 8
		for range 8 {
			if crc&0x8000 != 0 {
				crc = crc<<1 ^ 0x1021
			} else {
				crc <<= 1
			}
		}
	}
	return crc % slots
}

// partition returns which of n partitions a topic is in: FNV-1a, which is the same
// everywhere and for ever.
func partition(topic string, n int) int {
	if n == 1 {
		return 0
	}
	h := uint64(14695981039346656037)
	for i := range len(topic) {
		h = (h ^ uint64(topic[i])) * 1099511628211
	}
	return int((h ^ h>>32) % uint64(n))
}
