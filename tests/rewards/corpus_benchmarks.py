r"""Answers as the references of benchmarks and the models' answers look, written after the rules of the other files.

One pair a line, tried in both directions.
"""

from __future__ import annotations

from collections.abc import Iterator

_EQUAL = r"""
\frac{1}{2}\text{ or }0.5 == \frac{1}{2} or 0.5
\textbf{(B)}\ 12 == \textbf{(B) } 12
\text{(E)} == E
11\sqrt2 == 11 \sqrt{2}
3\frac{1}{5} == 3.2
\text{2 hours} == 2 hours
5.4 \text{ cents} == 5.4
\left( \frac{3}{2}, -13 \right) == (3/2,-13)
\begin{pmatrix} -2 \\ -14 \\ -7 \end{pmatrix} == \begin{pmatrix}-2\\-14\\-7\end{pmatrix}
6+9i == 6 + 9 i
\left[\frac{\pi}{2},\frac{3\pi}{2}\right] == [\pi/2, 3\pi/2]
10,\!080 == 10080
\$36 == 36
\$32,\!348 == 32348
(-\infty,-2)\cup(-2,3)\cup(3,\infty) == (-\infty, -2) \cup (-2,3) \cup (3, \infty)
\text{Evelyn} == Evelyn
\text{ellipse} == Ellipse
5x^7-45x^4+25x == 5x(x^6-9x^3+5)
(x - 2)(x + 2) == x^2-4
\frac{14}{3} == 14/3
\pi == pi
2\sqrt{149} == 2*sqrt(149)
.35625 == 0.35625
\frac{3}{56} == 3/56
2220 == 2,220
1,2,3,4 == 1, 2, 3, 4
\dfrac{9}{7} == 9/7
-1,4 == 4, -1
\{1\pm\sqrt{5},-2\} == \{-2, 1+\sqrt5, 1-\sqrt5\}
1\pm\sqrt{19} == 1+\sqrt{19}, 1-\sqrt{19}
(0,9)\cup(9,36) == (0, 9) ∪ (9, 36)
\text{Navin} == \text{Navin}
4:3 == 4 : 3
x \in [-2,7] == [-2,7]
[-2,7] == -2 \le x \le 7
70 \sqrt{2} == 70√2
18^\circ == 18 degrees
\frac{1}{2}(e-1) == \frac{e-1}{2}
y = \frac{1}{2}x + 3 == y = 0.5x + 3
x^2+y^2=1 == x^2 + y^2 - 1 = 0
12\% == 0.12
6.02\times 10^{23} == 6.02 \times 10^{23}\text{ molecules}
72^\circ == 72
5:6 == 5:6
\tfrac{1+\sqrt5}{2} == (1+\sqrt{5})/2
\sqrt{\frac{2}{3}} == \frac{\sqrt6}{3}
\log_{10} 2 == \lg 2
2^{-n} == \frac{1}{2^n}
\frac{(n+1)!}{n!} == n+1
\binom{n}{2} == \frac{n(n-1)}{2}
C(n,2) == C(n, 2)
3x^2y == 3yx^2
(-1)^{n+1} == -(-1)^n
\infty == +\infty
-\infty == - \infty
10:30 == 10:30
\text{10:30 a.m.} == 10:30 a.m.
7\text{ }\text{cm} == 7 cm
7\ \text{cm}^2 == 7 cm²
100{,}000 == 100000
1e-05 == 0.00001
\{x \mid x > 3\} == (3,\infty)
x = 3, y = 4 == (x, y) = (3, 4)
\text{yes} == Yes
True == true
None == none
2 + \sqrt{3}\,i == 2+i\sqrt3
\cos\theta + i\sin\theta == e^{i\theta}
\operatorname{lcm}(4,6) == 12
\frac{dy}{dx} == \frac{dy}{dx}
\vec{v} == \vec{v}
\overline{AB} == \overline{AB}
k\pi, k\in\mathbb{Z} == k\pi, k \in \mathbb{Z}
\frac{\pi}{4}+k\pi == k\pi+\pi/4
\left\{ -\frac{1}{2}, 3 \right\} == \{-0.5, 3\}
1 \frac{1}{2} == 1.5
three == three
8!/(3!5!) == 56
2x\,dx == 2x dx
\$1.50 == 1.50 dollars
25 mph == 25 miles per hour
0.5 == 1/2.
(1, -2) == (1,−2)
x=2\text{ and }y=3 == y=3, x=2
\frac{x}{y} == x/y
11_{10} == 11
1.0 × 10³ == 1000
3 / 4 == 3/4
m\angle ABC = 60^\circ == 60
|z|=5 == 5
P(A)=\frac12 == 1/2
\sin(x)+C == \sin x + C
x_{1}=2, x_{2}=3 == x_1 = 2, x_2 = 3
n=5 == n = 5.
5\times 3 == 15
\sqrt{16} == 4
\sqrt[4]{81} == 3
\frac{\frac{1}{2}}{3} == 1/6
(2,3],(4,5) == (2,3], (4,5)
\begin{bmatrix}1&0\\0&1\end{bmatrix} == \left[\begin{matrix}1&0\\0&1\end{matrix}\right]
100\text{ m}^2 == 100 square meters
4\pi\text{ units} == 4\pi
-\sqrt{2} == -√2
\frac{-b\pm\sqrt{b^2-4ac}}{2a} == \frac{-b+\sqrt{b^2-4ac}}{2a}, \frac{-b-\sqrt{b^2-4ac}}{2a}
1/3 == 0.333333333
7\% == 7 %
3 \text{ and } 5 == 3, 5
\text{A and C} == A, C
ABC == \text{ABC}
\arcsin\frac{1}{2} == 30^\circ
\text{Yes, it is} == yes, it is
$5$ and $7$ == 5, 7
\(\frac{1}{2}\) == 0.5
x ≥ 3 == [3, ∞)
f^{-1}(x)=x/2 == f^{-1}(x) = \frac{x}{2}
\|v\| == \|v\|
a_n = 2n+1 == 2n+1
a_{n} = 2^n == a_n=2^{n}
3\mathbf{i}+4\mathbf{j} == 3i+4j
\frac{1}{3}\ln|x|+C == \frac{\ln |x|}{3}+C
12:00 == 12:00
1{,}234.5 == 1234.5
\approx 3.14 == 3.14
\frac{1}{2}mv^{2} == 0.5mv^2
9\,\text{m}/\text{s} == 9 m/s
5 million == 5000000
\$5 million == 5,000,000 dollars
3 dozen == 36
\$5 == $5 dollars
"""
_UNEQUAL = r"""
2m == 2
2 m == 3
5 km == 5 mi
x=1,2 == (1,2)
1,2 == (1,2)
\{5\} == 5
[5] == \{5\}
\sqrt{2} == 2
\frac{1}{2} == 2
0.5 == .05
100,200 == 100
1,000 == 1
1.000 == 1000
3,14 == 314
10^3 == 103
2^10 == 210
2^{10} == 2^1 \cdot 0
\log 100 == 2
\log x == \log_{10} x
ab == a+b
\sin x == \sin y
\sin x == sin
\sin(x+y) == \sin x+y
|x-1| == x-1
(x+1)^2 == x^2+1
a^b == b^a
\frac{a}{b} == \frac{b}{a}
AB+CD == AD+CB
AB \cdot CD == AC \cdot BD
\overline{AB} == \overline{CD}
AB == A B
\vec{a} == a
\hat{x} == x
x' == x''
\mathbb{Z} == \mathbb{N}
(1,2) == (1,2,2)
\{1,2\} == \{1,2,1,3\}
1, 1, 2 == 1, 2
\emptyset == 0
\emptyset == \{0\}
\emptyset == \{\emptyset\}
(-\infty, 3) == (3, -\infty)
x \neq 2 == x = 2
x \ge 3 == 3
x > 3 == 3
\infty == 1e308
\text{true} == 1
A == (B)
(A) 42 == (B) 42
a \equiv 3 \pmod 5 == a \equiv 3 \pmod 7
3 \pmod 5 == 3
f'(x) == f(x)
y = 2x == y = 3x
y > 2x == y < 2x
y \ge 2x == y > 2x
2x+3y=6 == 2x+3y=7
x^2+y^2=4 == x^2+y^2=2
x = y == x = -y
1:2 == 1:3
1:2:3 == 1:2
10:30 am == 10:30 pm
January 5 == January 6
5 January == 6 January
\begin{pmatrix}1&2\\3&4\end{pmatrix} == \begin{pmatrix}1&2&3&4\end{pmatrix}
\begin{pmatrix}1\\2\end{pmatrix} == (1,2)
\begin{cases}1 & x>0\\0 & x\le0\end{cases} == \begin{cases}1 & x\ge0\\0 & x<0\end{cases}
\begin{cases}1 & x>0\\0 & x\le0\end{cases} == \begin{cases}0 & x>0\\1 & x\le0\end{cases}
1+2i == 2+i
i == 1
e == 2.71828
\pi == 3
\pi == p i
90^\circ == 90%
90^\circ == \pi
45^\circ == 45\text{ rad}
\sin 30 == \frac12
25\text{ mph} == 25\text{ km/h}
5\text{ ft} == 5\text{ in}
5 cm == 5 cm^3
$5 == 5 cents
$5 == 5%
£5 == $5
50\% == 5
0.5\% == 0.5
200\% == 200
1e3 == 1e-3
1e3 == 13
6.02e23 == 6.02
4\frac{1}{2} == 2
4\frac{1}{2} == 4
2 1/2 == 21/2
-1\frac12 == -0.5
0.\overline{9} == 0.9
0.(3) == 0.3
0.\overline{12} == 0.12
12_3 == 12_4
12_3 == 123
\pm 3 == 3
\pm 3 == -3
3\pm1 == 4
3\pm1 == 3+1
1 or 2 == 1 and 3
no == yes
no real solutions == no solution
none == no
Monday == Mon
Tuesday, Thursday == Thursday
Tom == Tim
left == felt
dog == god
cat == act
x^2-5x+6 == x^2+5x+6
(x-2)(x-3) == (x-2)(x+3)
\ln 2 == \log_2 e
2\ln x == \ln 2x
e^{2x} == 2e^x
e^{x^2} == e^{2x}
(e^x)^2 == e^{x^2}
\sqrt{x}+1 == \sqrt{x+1}
\sqrt[3]{x} == \sqrt{x}
\sqrt[4]{x} == x^4
n! == n
(2n)! == 2n!
(n+1)! == n!+1
\binom{n}{2} == \binom{2}{n}
\lfloor x \rfloor == \lceil x \rceil
\max(a,b) == \min(a,b)
a_1 == a_2
a_{n+1} == a_n+1
x^2 == x_2
42 == 42x
42 == 42 - x
42 == x - 42
42 == 420/10.1
42 == 4,2
12 == 1,2
1/2 == 12
1/2 == 1,2
1000 == 1,00
100000 == 100,00
\frac{3}{4} == 3,4
42 == forty-two
(0,1) == [0,1]
(0,1) == \{x: 0\le x\le 1\}
(0,1)\cup(2,3) == (0,3)
(0,2) == (0,1)\cup(1,2)
[0,1]\cup[1,2] == [0,1]
x<1 or x>2 == 1<x<2
x<1 and x>2 == 1<x<2
x^2=4 == x=2
x=2 == x=\pm2
x=2 == x^2-4=0
x=5, y=3 == x=3, y=5
(x,y)=(1,2) == (y,x)=(1,2)
u = 3 == v = 3
3x == 3X
Ax+B == ax+b
\theta == \Theta
\epsilon == e
\mu == m
m/s == s/m
N == n
k == K
2k+1, k\in\mathbb{Z} == 2k+1
0 == 10^{-50}
0 == e^{-1000}
0 == \sin(\pi)+10^{-30}
1 == 1+10^{-30}
1 == \cos(10^{-20})
\pi == \pi+10^{-40}
\sqrt{2} == \sqrt{2}+10^{-70}
e^{\pi\sqrt{163}} == 262537412640768744
5 == 5 million
$5 == $5 million
5 == 5 more than x
42 == 42 is wrong
42 == 42 not
3 == 3 halves
7 == 7 less than 10
12 == dozen
2 == 2 thirds
P(A)=0.5 == P(B)=0.5
"""


def benchmark_pairs(*, equal: bool) -> Iterator[tuple[str, str, str]]:
    """Kind, reference, answer."""
    for line in (_EQUAL if equal else _UNEQUAL).strip().splitlines():
        one, other = line.split(" == ")
        yield "benchmark", one, other
        yield "benchmark", other, one
